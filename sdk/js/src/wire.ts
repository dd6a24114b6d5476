// What Limpet's own wire looks like: docs/wire.md. No I/O, no state.

/** Bytes as WebCrypto takes them: in memory of their own. */
export type Bytes = Uint8Array<ArrayBuffer>;

export const subtle: SubtleCrypto | undefined = globalThis.crypto?.subtle;

const ecdsa = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const ecdh = { name: "ECDH", namedCurve: "P-256" };
const hmac = { name: "HMAC", hash: "SHA-256", length: 256 };

const text = new TextEncoder();
export const bytes = (s: string) => text.encode(s) as Bytes;

export function join(...parts: Bytes[]): Bytes {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

export const base64 = (b: Bytes) => btoa(String.fromCharCode(...b));
export const base64url = (b: Bytes) => urlOf(base64(b));
export const urlOf = (s: string) => s.replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
export const fromBase64 = (s: string) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));

/** A byte sequence of RFC 9651, 3.3.5. */
const field = (b: Bytes) => `:${base64(b)}:`;

export const sha256 = async (b: Bytes) => new Uint8Array(await subtle!.digest("SHA-256", b));
export const digest = async (body: Bytes) => "sha-256=" + field(await sha256(body));

/** What Limpet-Key says. */
export interface Server {
  text: string;
  point: Bytes;
  expires: number; // seconds
  lease: number; // seconds
  session?: string; // its ID, base64
}

/** Reads Limpet-Key; undefined if that cannot be read. */
export function parseServer(text: string): Server | undefined {
  const [first, ...rest] = text.split(";");
  const key = /^:([\w+/=]+):$/.exec(first.trim());
  const params = new Map(rest.map((p) => p.trim().split(/=(.*)/) as [string, string]));
  const expires = Number(params.get("exp"));
  const lease = Number(params.get("lease"));
  if (!key || !(expires > 0) || !(lease > 0)) return;
  try {
    const point = fromBase64(key[1]);
    return point.length === 65 ? { text, point, expires, lease, session: /^:([\w+/]{43}=):$/.exec(params.get("session") ?? "")?.[1] } : undefined;
  } catch {
    return;
  }
}

/** Makes a key that signs logins and delegations. */
export const newDeviceKey = () => subtle!.generateKey(ecdsa, false, ["sign", "verify"]) as Promise<CryptoKeyPair>;

/** Limpet-Device of a key. */
export const deviceField = async (key: CryptoKey) => field(new Uint8Array(await subtle!.exportKey("spki", key))) + ";level=software";

const point = async (key: CryptoKey) => new Uint8Array(await subtle!.exportKey("raw", key));

/** The JWK thumbprint (RFC 7638) of a P-256 point, in base64url. */
export const thumbprint = async (p: Bytes) =>
  base64url(await sha256(bytes(`{"crv":"P-256","kty":"EC","x":"${base64url(p.slice(1, 33))}","y":"${base64url(p.slice(33))}"}`)));
export const keyID = async (key: CryptoKey) => thumbprint(await point(key));

/** What the device key signs to delegate to an ephemeral key that agrees. */
export function statement(notBefore: number, expires: number, session: Bytes, audience: string, key: Bytes): Bytes {
  const host = bytes(audience);
  const head = new DataView(new ArrayBuffer(17));
  head.setUint8(0, 5);
  head.setUint32(5, notBefore);
  head.setUint32(13, expires);
  return join(bytes("limpet delegation 1\0"), new Uint8Array(head.buffer), session, new Uint8Array([host.length >> 8, host.length & 255]), host, key);
}

/** The HMAC key that an ephemeral key and the server's agree for a statement. */
export async function agree(own: CryptoKeyPair, server: Bytes, signed: Bytes): Promise<CryptoKey> {
  const theirs = await subtle!.importKey("raw", server, ecdh, false, []);
  const z = new Uint8Array(await subtle!.deriveBits({ name: "ECDH", public: theirs }, own.privateKey, 256));
  const secret = await subtle!.importKey("raw", z, "HKDF", false, ["deriveKey"]);
  z.fill(0);
  const info = join(bytes("limpet request key 1\0"), await sha256(signed), await point(own.publicKey), server);
  return subtle!.deriveKey({ name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info }, secret, hmac, false, ["sign"]);
}

/** An ephemeral key that the device key has delegated to, agreed with the server. */
export interface Ephemeral {
  mac: CryptoKey;
  keyID: string;
  delegation: string; // as requests carry it
  from: number; // seconds, by the server's clock
  until: number;
}

/** Makes an ephemeral key for one session, host and lease. now is the server's time in seconds. */
export async function delegate(device: CryptoKey, session: Bytes, audience: string, server: Server, now: number, own?: CryptoKeyPair): Promise<Ephemeral> {
  own ??= (await subtle!.generateKey(ecdh, false, ["deriveBits"])) as CryptoKeyPair;
  const lease = Math.min(server.lease, 86400);
  const from = Math.floor(now - Math.min(5, lease / 10)); // the server's clock may be behind
  const until = from + lease;
  const key = await point(own.publicKey);
  const signed = statement(from, until, session, audience, key);
  const [mac, id, signature, name] = await Promise.all([agree(own, server.point, signed), thumbprint(key), sign(device, signed), sha256(server.point)]);
  return { mac, keyID: id, delegation: `${field(signed)};sig=${field(signature)};server=${field(name.slice(0, 16))}`, from, until };
}

export async function sign(key: CryptoKey, message: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle!.sign(key.algorithm.name === "HMAC" ? "HMAC" : ecdsa, key, message));
}

/** The fields that a signature covers besides the target, in this order. */
const covered = ["content-digest", "authorization", "limpet-device", "limpet-session", "limpet-challenge"];

/**
 * Returns the value of Signature-Input and the signature base (RFC 9421, 2.5) of
 * a request with these fields.
 */
export function signatureBase(method: string, url: URL, fields: Map<string, string>, created: number, nonce: string, keyID: string, alg: string): [input: string, base: string] {
  let names = "";
  let base = "";
  const cover = (name: string, value: string) => {
    names += ` "${name}"`;
    base += `"${name}": ${value}\n`;
  };
  cover("@method", method);
  cover("@authority", url.host);
  cover("@path", url.pathname);
  cover("@query", url.search || "?");
  for (const name of covered) if (fields.has(name)) cover(name, fields.get(name)!);
  const params = `(${names.slice(1)});created=${created};nonce="${nonce}";keyid="${keyID}";alg="${alg}";tag="limpet"`;
  return ["limpet=" + params, `${base}"@signature-params": ${params}`];
}

/** Adds Signature-Input and Signature to the fields. */
export async function addSignature(method: string, url: URL, fields: Map<string, string>, created: number, key: CryptoKey, keyID: string): Promise<void> {
  const nonce = base64url(crypto.getRandomValues(new Uint8Array(16)));
  const alg = key.algorithm.name === "HMAC" ? "hmac-sha256" : "ecdsa-p256-sha256";
  const [input, base] = signatureBase(method, url, fields, Math.floor(created), nonce, keyID, alg);
  fields.set("signature-input", input);
  fields.set("signature", `limpet=${field(await sign(key, bytes(base)))}`);
}
