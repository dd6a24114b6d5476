// DPoP: the clients of three packages, an issuer of access tokens, and a
// resource server.
import { createServer } from 'node:http';
import { decodeJwt, exportJWK, generateKeyPair, SignJWT } from 'jose';
import * as dpop from 'dpop';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import { serve } from './lines.mjs';

let sent = []; // the headers of each request of one fetch
let held = false; // they are not sent

function record(url, init) {
  sent.push(Object.fromEntries(new Headers(init.headers)));
  return held ? new Response('{}') : fetch(url, init);
}

// A refusal is an error in two of the packages, with the challenges taken apart.
function refused(error) {
  const { response, cause } = error;
  if (!response || !Array.isArray(cause)) throw error;
  return { response, challenges: cause };
}

// Each makes the function that fetches with a key pair, and the thumbprint that
// tokens for it name.
const clients = {
  dpop: async (algorithm) => {
    const pair = await dpop.generateKeyPair(algorithm);
    return {
      jkt: await dpop.calculateThumbprint(pair.publicKey),
      async fetch({ token, method, url, body }) {
        const { origin, pathname } = new URL(url);
        const once = async (nonce) => record(url, { method, body, headers: {
          authorization: `DPoP ${token}`,
          dpop: await dpop.generateProof(pair, origin + pathname, method, nonce, token),
        } });
        let response = await once();
        if (response.status === 401 && /DPoP [^,]*error="use_dpop_nonce"/.test(response.headers.get('www-authenticate'))) {
          response = await once(response.headers.get('dpop-nonce'));
        }
        return { response };
      },
    };
  },

  oauth4webapi: async (algorithm) => {
    const handle = oauth.DPoP({ client_id: 'peer' }, await oauth.generateKeyPair(algorithm));
    return {
      jkt: await handle.calculateThumbprint(),
      async fetch({ token, method, url, body }) {
        const options = { DPoP: handle, [oauth.customFetch]: record };
        const once = () => oauth.protectedResourceRequest(token, method, new URL(url), new Headers(), body, options);
        try {
          return { response: await once().catch((error) => oauth.isDPoPNonceError(error) ? once() : Promise.reject(error)) };
        } catch (error) {
          return refused(error);
        }
      },
    };
  },

  'openid-client': async (algorithm) => {
    const config = new openid.Configuration({ issuer: 'https://issuer.example' }, 'peer');
    config[openid.customFetch] = record;
    const handle = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair(algorithm));
    return {
      jkt: await handle.calculateThumbprint(),
      async fetch({ token, method, url, body }) {
        try {
          return { response: await openid.fetchProtectedResource(config, token, new URL(url), method, body, new Headers(), { DPoP: handle }) };
        } catch (error) {
          return refused(error);
        }
      },
    };
  },
};

let client;
const issuerKeys = {}; // by algorithm

// resource is a resource server: it wants a nonce in proofs for /nonce, and
// leaves the rest to oauth4webapi.
async function resource(request, as, audience) {
  if (new URL(request.url).pathname === '/nonce' && decodeJwt(request.headers.get('dpop')).nonce !== 'of the day') {
    return [401, { code: 'nonce' }, { 'dpop-nonce': 'of the day', 'www-authenticate': 'DPoP error="use_dpop_nonce"' }];
  }
  try {
    const claims = await oauth.validateJwtAccessToken(as, request, audience, { requireDPoP: true });
    return [200, { user: claims.sub }];
  } catch (error) {
    return [401, { code: error.code, claim: error.cause?.claim, message: error.message }];
  }
}

await serve({
  // issue makes an issuer's keys.
  async issue({ algorithms }) {
    const keys = [];
    for (const alg of algorithms) {
      issuerKeys[alg] = await generateKeyPair(alg);
      keys.push({ ...await exportJWK(issuerKeys[alg].publicKey), alg, kid: alg, use: 'sig' });
    }
    return { jwks: { keys } };
  },

  // mint makes an access token (RFC 9068) for the holder of a key.
  async mint({ algorithm, issuer, audience, jkt, seconds }) {
    const now = Math.floor(Date.now() / 1000);
    const token = await new SignJWT({ client_id: 'peer', ...jkt && { cnf: { jkt } } })
      .setProtectedHeader({ alg: algorithm, typ: 'at+jwt', kid: algorithm })
      .setIssuer(issuer).setAudience(audience).setSubject('alice').setJti(crypto.randomUUID())
      .setIssuedAt(now).setExpirationTime(now + seconds).sign(issuerKeys[algorithm].privateKey);
    return { token };
  },

  async client({ name, algorithm }) {
    client = await clients[name](algorithm);
    return { jkt: client.jkt };
  },

  async fetch(question) {
    [sent, held] = [[], question.held];
    const { response, challenges } = await client.fetch(question);
    return { status: response.status, body: await response.text(), sent, challenges };
  },

  // serve starts the resource server.
  async serve({ issuer, jwks, audience }) {
    const as = { issuer, jwks_uri: jwks };
    const server = createServer(async (incoming, outgoing) => {
      const request = new Request(`http://${incoming.headers.host}${incoming.url}`, { method: incoming.method, headers: incoming.headers });
      const [status, answer, headers] = await resource(request, as, audience);
      outgoing.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(answer));
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return { url: `http://127.0.0.1:${server.address().port}` };
  },
});
