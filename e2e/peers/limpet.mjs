// A client of Limpet's own wire that shares no code with the Go packages: the
// delegation and the key agreement are written here, the signatures are those of
// the package it is told to use. And a verifier of signatures.
import { createHash, createPublicKey, createSecretKey, diffieHellman, generateKeyPairSync, hkdfSync, randomBytes } from 'node:crypto';
import { calculateJwkThumbprint } from 'jose';
import { serve } from './lines.mjs';
import { algorithms, packages } from './signatures.mjs';

const target = ['@method', '@authority', '@path', '@query'];
const codes = { ed25519: 1, 'ecdsa-p256-sha256': 2, 'rsa-pss-sha512': 3, 'rsa-v1_5-sha256': 4, 'hmac-sha256': 5 };

const sha256 = (data) => createHash('sha256').update(data).digest();
const binary = (bytes) => `:${Buffer.from(bytes).toString('base64')}:`;
const keyId = (key) => calculateJwkThumbprint(key.export({ format: 'jwk' }));
const spki = (key) => key.export({ type: 'spki', format: 'der' });

// Making RSA keys is slow, so each of them is made once.
const rsa = {};

function newKey(algorithm, use) {
  if (algorithm === 'ed25519') return generateKeyPairSync('ed25519');
  if (algorithm.startsWith('rsa-')) return rsa[use] ??= generateKeyPairSync('rsa', { modulusLength: 2048 });
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

// encoded is the key as a delegation has it.
function encoded(algorithm, key) {
  const { x, y } = key.export({ format: 'jwk' });
  if (algorithm === 'ed25519') return Buffer.from(x, 'base64url');
  if (algorithm.startsWith('rsa-')) return spki(key);
  return Buffer.concat([Buffer.of(4), Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')]);
}

function publicPoint(bytes) {
  const x = bytes.subarray(1, 33).toString('base64url');
  const y = bytes.subarray(33).toString('base64url');
  return createPublicKey({ key: { kty: 'EC', crv: 'P-256', x, y }, format: 'jwk' });
}

class Client {
  constructor({ name, base, device, ephemeral }) {
    Object.assign(this, { package: packages[name], base, device, ephemeral });
    this.deviceKey = newKey(device, 'device');
    this.last = null; // what was sent last
  }

  // sign covers components, those of them that are fields only where they are.
  async sign(request, key, id, algorithm, components, more = {}) {
    const covered = [...target, ...components.filter((name) => /[@;]/.test(name) || name in request.headers)];
    return this.package.sign(request, {
      key, algorithm, keyid: id, nonce: randomBytes(16).toString('base64url'),
      tag: 'limpet', label: 'sig', components: covered, ...more,
    });
  }

  async login({ ownSalt }) {
    const body = 'the password';
    const { publicKey, privateKey } = this.deviceKey;
    const alg = this.device.startsWith('rsa-') ? `;alg=${this.device}` : '';
    const request = { method: 'POST', url: `${this.base}/login`, headers: {
      'limpet-device': binary(spki(publicKey)) + alg + ';level=software',
      'content-digest': `sha-256=${binary(sha256(body))}`,
    } };
    request.headers = await this.sign(request, privateKey, await keyId(publicKey), this.device, ['limpet-device', 'content-digest'], { ownSalt });
    const { response, answer } = await this.send({ ...request, body });
    if (response.status === 200) {
      this.token = answer.token;
      const [, point, lease, session] = response.headers.get('limpet-key').match(/^:([^:]+):;exp=\d+;lease=(\d+);session=:([^:]+):$/);
      Object.assign(this, { server: Buffer.from(point, 'base64'), lease: +lease, session: Buffer.from(session, 'base64') });
      await this.delegate();
    }
    return { status: response.status, reason: answer.reason };
  }

  async delegate() {
    const algorithm = this.ephemeral;
    const { publicKey, privateKey } = newKey(algorithm, 'ephemeral');
    const key = encoded(algorithm, publicKey);
    const audience = Buffer.from(new URL(this.base).host);
    const numbers = Buffer.alloc(17);
    const now = Math.floor(Date.now() / 1000);
    numbers.writeUInt8(codes[algorithm], 0);
    numbers.writeBigUInt64BE(BigInt(now), 1);
    numbers.writeBigUInt64BE(BigInt(now + this.lease), 9);
    const statement = Buffer.concat([
      Buffer.from('limpet delegation 1\0'), numbers, this.session, Buffer.of(audience.length >> 8, audience.length & 255), audience, key,
    ]);
    this.delegation = `${binary(statement)};sig=${binary(algorithms[this.device].sign(this.deviceKey.privateKey, statement))}`;
    this.keyId = await keyId(publicKey);
    this.key = privateKey;
    if (algorithm === 'hmac-sha256') {
      const z = diffieHellman({ privateKey, publicKey: publicPoint(this.server) });
      const info = Buffer.concat([Buffer.from('limpet request key 1\0'), sha256(statement), key, this.server]);
      this.key = createSecretKey(Buffer.from(hkdfSync('sha256', z, '', info, 32)));
      this.delegation += `;server=${binary(sha256(this.server).subarray(0, 16))}`;
    }
  }

  // request signs a request, changes it as it is told, and sends it.
  async request({ method, path, body, headers, cover = [], introduce, stranger, change = {} }) {
    let request = { method, url: this.base + path, headers: { ...headers, authorization: `Bearer ${this.token}` } };
    if (introduce) request.headers['limpet-delegation'] = this.delegation;
    if (body !== undefined) request.headers['content-digest'] = `sha-256=${binary(sha256(body))}`;
    request.headers = await this.sign(request, this.key, this.keyId, this.ephemeral, [...cover, 'authorization', 'content-digest']);
    if (stranger) { // such as a proxy that signs too
      const key = newKey('ed25519').privateKey;
      request.headers = await this.sign(request, key, 'stranger', 'ed25519', [], { tag: 'stranger', label: 'proxy' });
    }
    request = { ...request, body, ...change.method && { method: change.method } };
    if (change.path) request.url = this.base + change.path;
    if (change.body) request.body = change.body;
    for (const [name, from, to] of change.replace ?? []) {
      if (!request.headers[name].includes(from)) throw new Error(`no ${from} in ${name}: ${request.headers[name]}`);
      request.headers[name] = request.headers[name].replace(from, to);
    }
    if (change.flip) request.headers[change.flip] = flip(request.headers[change.flip]);
    return this.result(request);
  }

  again() { return this.result(this.last); }

  async result(request) {
    const { response, answer } = await this.send(request);
    return { status: response.status, reason: answer.reason, seen: answer };
  }

  async send(request) {
    this.last = request;
    const { url, ...init } = request;
    const response = await fetch(url, init);
    return { response, answer: await response.json() };
  }
}

// flip changes one character in the middle.
function flip(text) {
  const i = text.length >> 1;
  return text.slice(0, i) + (text[i] === 'A' ? 'B' : 'A') + text.slice(i + 1);
}

let client;

await serve({
  start(question) { client = new Client(question); },
  login: (question) => client.login(question),
  request: (question) => client.request(question),
  again: () => client.again(),

  // verify tells of a request whether its signature holds, and if not, why.
  async verify({ name, algorithm, key, request }) {
    const bytes = Buffer.from(key, 'base64');
    const parsed = algorithm === 'hmac-sha256' ? createSecretKey(bytes) : createPublicKey({ key: bytes, format: 'der', type: 'spki' });
    try {
      return { holds: await packages[name].verify(request, algorithm, parsed) };
    } catch (error) {
      return { holds: false, why: `${error}` };
    }
  },
});
