// Chromium keeps the keys that Limpet's SDK makes: one that cannot be exported
// stays in IndexedDB over a restart.
import assert from "node:assert/strict";
import { launch, picture } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url } = process.env;

let context = await launch(profile);
let page = await context.newPage();
await page.goto(url);
await page.evaluate(async () => {
  const key = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]);
  const db = await new Promise((ok, fail) => {
    const open = indexedDB.open("keys", 1);
    open.onupgradeneeded = () => open.result.createObjectStore("keys");
    open.onsuccess = () => ok(open.result);
    open.onerror = () => fail(open.error);
  });
  await new Promise((ok, fail) => {
    const put = db.transaction("keys", "readwrite", { durability: "strict" });
    put.objectStore("keys").put(key.privateKey, "device");
    put.oncomplete = ok;
    put.onerror = () => fail(put.error);
  });
});
await picture(page, "blank");
await context.close();

context = await launch(profile);
page = await context.newPage();
await page.goto(url);
const found = await page.evaluate(async () => {
  const db = await new Promise((ok) => (indexedDB.open("keys", 1).onsuccess = (e) => ok(e.target.result)));
  const key = await new Promise((ok) => (db.transaction("keys").objectStore("keys").get("device").onsuccess = (e) => ok(e.target.result)));
  const exported = await crypto.subtle.exportKey("pkcs8", key).then(() => "exported", (e) => e.name);
  const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, key, new Uint8Array(8));
  return { exported, length: signature.byteLength };
});
assert.deepEqual(found, { exported: "InvalidAccessError", length: 64 });
await context.close();
