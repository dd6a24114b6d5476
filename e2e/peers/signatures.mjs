// The two packages for HTTP message signatures, in one shape: sign returns the
// headers of a request { method, url, headers } with a signature more, verify
// tells whether the signature tagged "limpet" holds.
import { constants, createHmac, sign, timingSafeEqual, verify } from 'node:crypto';
import { createSigner, createVerifier, httpbis } from 'http-message-signatures';
import { appendSignature, createSignature, verifySignature, webcrypto } from 'http-message-sig';

const pss = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 64 };

// Algorithms as RFC 9421, 3.3 has them, for what the packages leave to their
// callers.
export const algorithms = {
  'hmac-sha256': {
    sign: (key, data) => createHmac('sha256', key).update(data).digest(),
    verify: (key, data, tag) => {
      const want = createHmac('sha256', key).update(data).digest();
      return tag.length === want.length && timingSafeEqual(want, tag);
    },
  },
  'ecdsa-p256-sha256': {
    sign: (key, data) => sign('sha256', data, { key, dsaEncoding: 'ieee-p1363' }),
    verify: (key, data, signature) => verify('sha256', data, { key, dsaEncoding: 'ieee-p1363' }, signature),
  },
  ed25519: {
    sign: (key, data) => sign(null, data, key),
    verify: (key, data, signature) => verify(null, data, key, signature),
    web: 'Ed25519',
  },
  'rsa-pss-sha512': {
    sign: (key, data) => sign('sha512', data, { key, ...pss }),
    verify: (key, data, signature) => verify('sha512', data, { key, ...pss }, signature),
    web: { name: 'RSA-PSS', hash: 'SHA-512' },
  },
  'rsa-v1_5-sha256': {
    sign: (key, data) => sign('sha256', data, key),
    verify: (key, data, signature) => verify('sha256', data, key, signature),
  },
};

const required = ['@method', '@authority', '@path', '@query'];
const parameters = ['created', 'nonce', 'keyid', 'alg', 'tag'];

const httpMessageSignatures = {
  async sign(request, s) {
    const key = createSigner(s.key, s.algorithm, s.keyid);
    if (s.algorithm === 'rsa-pss-sha512' && !s.ownSalt) {
      // Its own signer makes the longest salt that fits; RFC 9421, 3.3.1 has 64 octets.
      key.sign = async (base) => algorithms[s.algorithm].sign(s.key, base);
    }
    const signed = await httpbis.signMessage({
      key,
      name: s.label,
      fields: s.components,
      params: ['keyid', 'tag', 'alg', 'nonce', 'created'],
      paramValues: { created: new Date(), nonce: s.nonce, tag: s.tag },
    }, request);
    return Object.fromEntries(Object.entries(signed.headers).map(([name, value]) => [name.toLowerCase(), value]));
  },

  async verify(request, algorithm, key) {
    const keyLookup = async ({ tag }) => tag === 'limpet' ? { algs: [algorithm], verify: createVerifier(key, algorithm) } : null;
    return await httpbis.verifyMessage({ keyLookup, requiredFields: required, requiredParams: parameters, maxAge: 60 }, request) === true;
  },
};

const httpMessageSig = {
  async sign(request, s) {
    const message = new Request(request.url, { method: request.method, headers: request.headers });
    const fields = await createSignature(message, {
      label: s.label,
      components: s.components,
      parameters: { tag: s.tag, keyid: s.keyid, created: Math.floor(Date.now() / 1000), alg: s.algorithm, nonce: s.nonce },
      signer: await signer(s.algorithm, s.key),
    });
    return Object.fromEntries(appendSignature(message.headers, fields));
  },

  async verify(request, algorithm, key) {
    const message = {
      kind: 'request',
      method: request.method,
      targetUri: request.url,
      fields: Object.entries(request.headers).map(([name, value]) => ({ name, value })),
    };
    await verifySignature(message, {
      label: 'limpet',
      policy: { algorithms: [algorithm], requiredComponents: required, requiredParameters: parameters, maxAge: 60 },
      resolveVerifier: () => verifier(algorithm, key),
    });
    return true;
  },
};

async function signer(algorithm, key) {
  const { sign, web } = algorithms[algorithm];
  if (!web) return { algorithm, sign: async (base) => sign(key, base) };
  return webcrypto.signer(await webKey('pkcs8', key, web, 'sign'));
}

async function verifier(algorithm, key) {
  const { verify, web } = algorithms[algorithm];
  if (!web) return { algorithm, verify: async (base, signature) => verify(key, base, Buffer.from(signature)) };
  return webcrypto.verifier(await webKey('spki', key, web, 'verify'));
}

const webKey = (type, key, algorithm, usage) =>
  crypto.subtle.importKey(type, key.export({ type, format: 'der' }), algorithm, false, [usage]);

export const packages = {
  'http-message-signatures': httpMessageSignatures,
  'http-message-sig': httpMessageSig,
};
