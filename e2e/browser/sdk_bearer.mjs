// The SDK at an app whose sessions are bearer tokens; and in browsers that can
// keep no key.
import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ask, launch } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_INSECURE: insecure } = process.env;

let context = await launch(join(profile, "user"));
const opened = async (at = url) => {
  const page = await context.newPage();
  await page.goto(at + "/open/");
  await page.waitForFunction(() => globalThis.limpet);
  return page;
};
const control = async (what) => JSON.parse((await ask(`${url}/control/${what}`)).text) ?? [];
const login = (page, user) => page.evaluate(async (user) => {
  const r = await limpet.login("/login", { method: "POST", body: new URLSearchParams({ user, password: "secret" }) });
  return (await r.json()).token;
}, user);
const me = (page, token, init = {}) => page.evaluate(async ([token, init]) => {
  const r = await fetch("/api/me", { ...init, headers: token ? { Authorization: "Bearer " + token } : {} });
  return [r.status, (await r.json()).user];
}, [token, init]);

let page = await opened();
const alice = await login(page, "alice");
await control("log");
assert.deepEqual(await me(page, alice), [200, "alice"]);
assert.deepEqual(await me(page, alice, { method: "POST", body: "x" }), [200, "alice"]);
assert.deepEqual(await me(page, ""), [401, undefined]); // no token, no session
assert.deepEqual(await me(page, "another"), [401, undefined]);
assert.deepEqual((await control("log")).map((r) => [r.Signed, r.Delegation]), [[true, true], [true, false], [false, false], [false, false]]);
const state = await page.evaluate(() => limpet.state());
assert.deepEqual([state.level, state.cookieUntil], ["software", undefined]);

// Each token has its key.
const tab = await opened();
const bob = await login(tab, "bob");
for (const p of [page, tab]) {
  assert.deepEqual(await me(p, alice), [200, "alice"]);
  assert.deepEqual(await me(p, bob), [200, "bob"]);
}
await page.reload();
await page.waitForFunction(() => globalThis.limpet);
assert.deepEqual(await me(page, alice), [200, "alice"]);
const xhr = await page.evaluate((token) => new Promise((ok) => {
  const x = new XMLHttpRequest();
  x.open("POST", "/api/me");
  x.setRequestHeader("Authorization", "Bearer " + token);
  x.onload = () => ok([x.status, JSON.parse(x.responseText).user]);
  x.send("x");
}), alice);
assert.deepEqual(xhr, [200, "alice"]);
const large = await page.evaluate((token) => fetch("/api/me", { method: "POST", body: new Blob([new Uint8Array((64 << 20) + 1)]), headers: { Authorization: "Bearer " + token } })
  .catch((e) => e.message), alice);
assert.match(large, /64 MiB/);

// A thief has the token, and a proof that was caught.
assert.equal((await ask(url + "/api/me", { Authorization: "Bearer " + alice })).status, 401);
const caught = new Promise((ok) => page.on("request", (r) => r.url().endsWith("/api/me") && ok(r.allHeaders())));
await me(page, alice);
const { authorization, signature, "signature-input": input } = await caught;
for (const path of ["/api/me", "/api/other"]) {
  assert.equal((await ask(url + path, { Authorization: authorization, Signature: signature, "Signature-Input": input })).status, 401, path);
}

// One logs out.
const out = await page.evaluate((token) => limpet.logout("/api/logout", { method: "POST", headers: { Authorization: "Bearer " + token } }).then((r) => r.status), alice);
assert.equal(out, 204);
assert.deepEqual(await me(page, alice), [401, undefined]);
assert.deepEqual(await me(tab, bob), [200, "bob"]);
assert.equal(await tab.evaluate((token) => limpet.logout("/api/logout", { method: "POST", headers: { Authorization: "Bearer " + token } }).then((r) => r.status), bob), 204);

// A disk that is full: the login goes on without a key.
const full = url.replace("localhost", "full.localhost");
const cdp = await context.newCDPSession(page);
await cdp.send("Storage.overrideQuotaForOrigin", { origin: full, quotaSize: 1 });
page = await opened(full);
assert.match(await login(page, "carol"), /^\w{20,}$/);
let kept = await page.evaluate(() => limpet.state());
assert.equal(kept.level, "none");
assert.match(kept.reason, /quota/i);
assert.equal(await page.evaluate(() => fetch("/open/x").then((r) => r.status)), 200);

// An origin that browsers give no keys to.
page = await opened(insecure);
assert.match(await login(page, "dave"), /^\w{20,}$/);
kept = await page.evaluate(() => limpet.state());
assert.equal(kept.level, "none");
assert.match(kept.reason, /secure origin/);
assert.equal(await page.evaluate(() => fetch("/open/x").then((r) => r.status)), 200);
assert.equal(await page.evaluate(() => limpet.refresh()), false);
await context.close();

// A user who has blocked storage.
const blocked = join(profile, "blocked");
await mkdir(join(blocked, "Default"), { recursive: true });
await writeFile(join(blocked, "Default", "Preferences"), JSON.stringify({ profile: { default_content_setting_values: { cookies: 2 } } }));
context = await launch(blocked);
page = await opened();
assert.match(await login(page, "erin"), /^\w{20,}$/);
kept = await page.evaluate(() => limpet.state());
assert.equal(kept.level, "none");
assert.ok(kept.reason, "no reason");
console.log("blocked storage:", kept.reason);
assert.equal(await page.evaluate(() => fetch("/open/x").then((r) => r.status)), 200);
await context.close();
