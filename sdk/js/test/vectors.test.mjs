// The wire as docs/wire.md has it: every value of limpettest/vectors/httpsig.json
// that a browser makes.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { build } from "esbuild";

const built = await build({ entryPoints: ["src/wire.ts"], bundle: true, format: "esm", write: false });
const wire = await import("data:text/javascript;base64," + Buffer.from(built.outputFiles[0].contents).toString("base64"));
const vectors = JSON.parse(readFileSync("../../limpettest/vectors/httpsig.json", "utf8"));

const hex = (b) => Buffer.from(b).toString("hex");
const unhex = (s) => new Uint8Array(Buffer.from(s, "hex"));
const key = (name) => vectors.keys.find((k) => k.name === name);
const { subtle } = crypto;

async function pair(name, algorithm, use) {
  const k = key(name);
  const jwk = JSON.parse(k.jwk);
  const d = Buffer.from(k.private, "hex").toString("base64url");
  const alg = { name: algorithm, namedCurve: "P-256" };
  return {
    privateKey: await subtle.importKey("jwk", { ...jwk, d }, alg, false, [use]),
    publicKey: await subtle.importKey("jwk", jwk, alg, true, use === "sign" ? ["verify"] : []),
  };
}

const p256 = (name) => key(name).jwk.includes("P-256") && key(name).spki.length === 182;
const agreed = vectors.delegations.filter((d) => d.agreement && p256(d.device) && key(d.device).algorithm === "ecdsa-p256-sha256");

test("keys have their names", async () => {
  let n = 0;
  for (const k of vectors.keys.filter((k) => p256(k.name))) {
    assert.equal(await wire.thumbprint(unhex(k.public)), k.keyid, k.name);
    n++;
  }
  assert.ok(n >= 4, `${n} keys`);
});

test("Limpet-Key is read", () => {
  const s = vectors.server;
  for (const [text, session] of [[s.limpet_key, undefined], [s.limpet_key_login, Buffer.from(vectors.session.id, "hex").toString("base64")]]) {
    const server = wire.parseServer(text);
    assert.deepEqual([hex(server.point), server.expires, server.lease, server.session], [key(s.key).public, s.exp, s.lease, session]);
  }
  for (const text of ["", ":", "::", ":AAAA:;exp=1;lease=1", s.limpet_key.replace("exp", "x"), s.limpet_key.replace("lease=900", "lease=x"), s.limpet_key.replace(":BDh", ":%%%")]) {
    assert.equal(wire.parseServer(text), undefined, text);
  }
});

test("delegations", async () => {
  assert.ok(agreed.length >= 1);
  for (const d of agreed) {
    const own = await pair(d.key, "ECDH", "deriveBits");
    const statement = wire.statement(d.not_before, d.expires, unhex(d.session), d.audience, unhex(key(d.key).public));
    assert.equal(hex(statement), d.statement, d.name);
    const device = await pair(d.device, "ECDSA", "sign");
    const signs = { name: "ECDSA", hash: "SHA-256" };
    assert.ok(await subtle.verify(signs, device.publicKey, unhex(d.signature), statement), d.name);
    const server = { point: unhex(key(d.agreement.server).public), lease: d.expires - d.not_before };
    const e = await wire.delegate(device.privateKey, unhex(d.session), d.audience, server, d.not_before + Math.min(5, server.lease / 10), own);
    assert.deepEqual([e.keyID, e.from, e.until], [key(d.key).keyid, d.not_before, d.expires]);
    const [, statementOf, signature, name] = /^:([^:]*):;sig=:([^:]*):;server=:([^:]*):$/.exec(e.delegation);
    assert.equal(hex(Buffer.from(statementOf, "base64")), d.statement);
    assert.ok(await subtle.verify(signs, device.publicKey, Buffer.from(signature, "base64"), statement));
    assert.equal(hex(Buffer.from(name, "base64")), d.agreement.id);
    // That the HMAC key is the one shows in what it signs.
    const expected = await subtle.importKey("raw", unhex(d.agreement.secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const message = wire.bytes("message");
    assert.equal(hex(await wire.sign(e.mac, message)), hex(await subtle.sign("HMAC", expected, message)), d.name);
  }
});

// How ours look; servers read others too.
const ours = /^limpet=\("@method" "@authority" "@path" "@query"( "(content-digest|authorization|limpet-\w+)")*\);created=\d+;nonce="[^"]+";keyid="[^"]+";alg="[^"]+";tag="limpet"$/;

// What a browser sends of an entry: undefined if it cannot be a browser's.
function asSent(v) {
  const url = new URL(`${v.scheme}://${v.authority}${v.path}${v.query && "?" + v.query}`);
  const fields = new Map();
  for (const [name, value] of v.fields) {
    if (fields.has(name.toLowerCase())) return;
    fields.set(name.toLowerCase(), value.trim());
  }
  if (fields.has("limpet-session")) fields.delete("authorization");
  if (fields.has("limpet-channel") || url.host !== v.authority || url.pathname !== v.path) return;
  return { url, fields };
}

for (const kind of ["logins", "requests"]) {
  test(kind, async () => {
    let n = 0;
    for (const v of vectors[kind]) {
      const sent = asSent(v);
      const delegation = agreed.find((d) => d.name === v.delegation);
      const isLogin = kind === "logins" && v.algorithm === "ecdsa-p256-sha256";
      if (!sent || !(isLogin || delegation) || !ours.test(v.signature_input)) continue;
      const [input, base] = wire.signatureBase(v.method, sent.url, sent.fields, v.created, v.nonce, key(v.key).keyid, v.algorithm);
      assert.equal(input, v.signature_input, v.name);
      assert.equal(base, v.base.join("\n"), v.name);
      const signature = Buffer.from(/:(.*):/.exec(v.signature)[1], "base64");
      if (delegation) {
        const mac = await wire.agree(await pair(v.key, "ECDH", "deriveBits"), unhex(key(delegation.agreement.server).public), unhex(delegation.statement));
        assert.equal(hex(await wire.sign(mac, wire.bytes(base))), hex(signature), v.name);
      } else {
        const { publicKey } = await pair(v.key, "ECDSA", "sign");
        assert.ok(await subtle.verify({ name: "ECDSA", hash: "SHA-256" }, publicKey, signature, wire.bytes(base)), v.name);
        // Two levels are there; a browser's keys are of one.
        if (v.level === "software") assert.equal(await wire.deviceField(publicKey), v.limpet_device, v.name);
      }
      if (v.body) assert.ok(sent.fields.get("content-digest").endsWith(await wire.digest(wire.bytes(v.body))), v.name); // others may stand before it
      n++;
    }
    assert.ok(n >= (kind === "logins" ? 2 : 8), `${n} of them`);
  });
}

test("servers that render pages can load it", async () => {
  const limpet = await import("../dist/limpet.js");
  assert.deepEqual(Object.keys(limpet).sort(), ["fetch", "install", "login", "logout", "refresh", "state"]);
  assert.equal((await limpet.state()).level, "none");
});
