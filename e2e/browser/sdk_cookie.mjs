// The SDK at an app whose sessions are cookies: all that pages do, and what a
// thief of the cookies gets.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { ask, launch, picture } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_OTHER: other } = process.env;
const home = join(profile, "user");

let context = await launch(home);
const errors = [];
const opened = async (path = "/open/") => {
  const page = await context.newPage();
  page.on("pageerror", (e) => errors.push(String(e)));
  await page.goto(url + path);
  await page.waitForFunction(() => globalThis.limpet);
  return page;
};
const control = async (what) => JSON.parse((await ask(`${url}/control/${what}`)).text) ?? [];
const step = (name) => console.log(`${new Date().toISOString().slice(17, 23)} ${name}`);
const login = (page, user = "alice") => page.evaluate(async (user) => {
  const r = await limpet.login("/login", { method: "POST", body: new URLSearchParams({ user, password: "secret" }) });
  return { status: r.status, state: await limpet.state() };
}, user);
const get = (page, path, init) => page.evaluate(async ([path, init]) => {
  const r = await fetch(path, init);
  return { status: r.status, url: r.url, ...(await r.json()) };
}, [path, init]);

step("before the login");
// Reads of IndexedDB are counted as the page makes them.
await context.addInitScript(() => {
  globalThis.reads = 0;
  for (const name of ["get", "getAll", "getKey", "openCursor"]) {
    const own = IDBObjectStore.prototype[name];
    IDBObjectStore.prototype[name] = function (...args) {
      globalThis.reads++;
      return own.apply(this, args);
    };
  }
});
let page = await opened();
assert.deepEqual(await page.evaluate(() => limpet.state()), { level: "none" });
assert.equal(await page.evaluate(() => limpet.refresh()), false);
assert.equal((await get(page, "/api/me")).status, 401);
const wrong = await page.evaluate(async () => [(await limpet.login("/login", { method: "POST", body: new URLSearchParams({ password: "no" }) })).status, await limpet.state()]);
assert.deepEqual(wrong, [401, { level: "none" }]);
await control("log");

step("login");
const first = await login(page);
assert.equal(first.status, 200);
assert.equal(first.state.level, "software");
assert.match(first.state.key, /^[\w-]{43}$/);
assert.match(first.state.session, /^[\w-]{43}$/);
assert.ok(first.state.cookieUntil > Date.now() + 500_000);
assert.deepEqual((await control("log")).map((r) => [r.Method, r.Path, r.Signed, r.Status]), [
  ["POST", "/login", true, 200], ["GET", "/.well-known/limpet", false, 200], ["POST", "/.well-known/limpet/cookie", true, 204],
]);
const me = await get(page, "/api/me?a=b%20c");
assert.deepEqual([me.status, me.user, me.level, me.query], [200, "alice", "software", "a=b%20c"]);
const stored = await page.evaluate(async () => {
  const db = await new Promise((ok) => (indexedDB.open("limpet").onsuccess = (e) => ok(e.target.result)));
  const all = await new Promise((ok) => (db.transaction("limpet").objectStore("limpet").getAll().onsuccess = (e) => ok(e.target.result)));
  db.close();
  return Promise.all(all.map((s) => crypto.subtle.exportKey("pkcs8", s.key).then(() => "exported", (e) => e.name)));
});
assert.deepEqual(stored, ["InvalidAccessError"]); // one key, which stays

step("bodies");
const hash = (s) => createHash("sha256").update(s).digest("hex");
const bodies = await page.evaluate(async () => {
  const post = async (body, init = {}) => {
    const r = await fetch("/api/strict/x", { method: "POST", body, ...init });
    return { status: r.status, ...(await r.json()) };
  };
  const form = new FormData();
  form.set("a", "ä");
  form.set("file", new Blob(["content"], { type: "text/plain" }), "f.txt");
  const buffer = new Uint8Array([1, 2, 3]);
  const stream = () => new Blob(["stre", "am"]).stream();
  const sent = {
    text: await post("hello ä"),
    empty: await post(""),
    none: await post(undefined),
    params: await post(new URLSearchParams({ a: "b c" })),
    blob: await post(new Blob(["blob"], { type: "text/x-own" })),
    buffer: await post(buffer.buffer),
    view: await post(buffer.subarray(1)),
    form: await post(form),
    stream: await post(stream(), { duplex: "half" }),
    json: await post("{}", { headers: { "Content-Type": "application/json", "X-Mine": "kept" } }),
    mebibyte: await post(new Uint8Array(1 << 20)),
    request: await fetch(new Request("/api/strict/x", { method: "put", body: "of a request" })).then((r) => r.json()),
    url: await fetch(new URL("/api/strict/x?y", location.href), { method: "DELETE" }).then((r) => r.json()),
    keepalive: await post("short", { keepalive: true }),
  };
  const mutable = new Uint8Array([7]);
  const going = post(mutable);
  mutable[0] = 8; // as fetch, what is sent is what was there
  sent.mutable = await going;
  return sent;
});
for (const [name, r] of Object.entries(bodies)) assert.ok(r.status === undefined || r.status === 200, `${name}: ${JSON.stringify(r)}`);
assert.equal(bodies.text.sum, hash("hello ä"));
assert.equal(bodies.text.type, "text/plain;charset=UTF-8");
assert.equal(bodies.empty.size, 0);
assert.deepEqual([bodies.params.body, bodies.params.type], ["a=b+c", "application/x-www-form-urlencoded;charset=UTF-8"]);
assert.deepEqual([bodies.blob.body, bodies.blob.type], ["blob", "text/x-own"]);
assert.equal(bodies.view.sum, hash(Buffer.from([2, 3])));
assert.match(bodies.form.type, /^multipart\/form-data; boundary=/);
assert.match(bodies.form.body, /name="file"; filename="f\.txt"\r\nContent-Type: text\/plain\r\n\r\ncontent/);
assert.equal(bodies.stream.body, "stream");
assert.deepEqual([bodies.json.type, bodies.json.mine], ["application/json", "kept"]);
assert.equal(bodies.mebibyte.size, 1 << 20);
assert.deepEqual([bodies.request.method, bodies.request.body], ["PUT", "of a request"]);
assert.deepEqual([bodies.url.method, bodies.url.query], ["DELETE", "y"]);
assert.equal(bodies.mutable.sum, hash(Buffer.from([7])));

step("what is not to be touched");
await control("log");
const odd = await page.evaluate(async (other) => {
  const controller = new AbortController();
  const aborted = fetch("/api/me", { signal: controller.signal }).catch((e) => e.name);
  controller.abort();
  const own = new Request("/api/me", { method: "POST", body: "x" });
  await fetch(own);
  return {
    aborted: await aborted,
    before: await fetch("/api/me", { signal: AbortSignal.abort() }).catch((e) => e.name),
    used: await fetch(own).catch((e) => e.name),
    invalid: await fetch("/api/me", { method: "GET", body: "x" }).catch((e) => e.name),
    scheme: await fetch("nonsense://x").catch((e) => e.name),
    data: await fetch("data:,hello").then((r) => r.text()),
    other: await fetch(other + "/open/evil").then((r) => r.status),
    omit: await fetch("/api/me", { credentials: "omit" }).then((r) => r.status),
    opaque: await fetch("/api/me", { mode: "no-cors" }).then((r) => r.status),
    referrer: await fetch("/api/referrer", { method: "POST", body: "x", referrerPolicy: "no-referrer" }).then((r) => r.status),
    large: await fetch("/api/large", { method: "POST", body: new Blob([new Uint8Array((64 << 20) + 1)]) }).then((r) => r.status),
  };
}, other);
assert.deepEqual(odd, {
  aborted: "AbortError", before: "AbortError", used: "TypeError", invalid: "TypeError", scheme: "TypeError",
  data: "hello", other: 200, omit: 401, opaque: 200, referrer: 200, large: 200,
});
const log = await control("log");
assert.deepEqual(log.filter((r) => r.Path === "/api/referrer").map((r) => [r.Referer, r.Signed]), [["", true]]);
assert.deepEqual(log.filter((r) => r.Path === "/api/large").map((r) => [r.Signed, r.Bound]), [[false, true]]); // the bound cookie speaks for it

step("redirects");
const redirects = await page.evaluate(async (other) => {
  const follow = async (to, code, init) => {
    const r = await fetch(`/api/redirect?code=${code}&to=${encodeURIComponent(to)}`, init);
    return r.type === "opaqueredirect" ? r.type : { status: r.status, path: new URL(r.url).pathname, ...(await r.json()) };
  };
  return {
    get: await follow("/api/strict/a", 302),
    twice: await follow("/api/redirect?to=/api/strict/b", 302),
    post: await follow("/api/strict/c", 303, { method: "POST", body: "x" }),
    manual: await follow("/api/strict/d", 302, { redirect: "manual" }),
    away: await fetch("/api/redirect?to=" + encodeURIComponent(other + "/open/evil")).then((r) => [r.status, new URL(r.url).origin]),
  };
}, other);
assert.deepEqual([redirects.get.status, redirects.get.path], [200, "/api/strict/a"]);
assert.deepEqual([redirects.twice.status, redirects.twice.path], [200, "/api/strict/b"]);
assert.deepEqual([redirects.post.status, redirects.post.path, redirects.post.method], [200, "/api/strict/c", "GET"]);
assert.equal(redirects.manual, "opaqueredirect");
assert.deepEqual(redirects.away, [200, new URL(other).origin]);

step("XMLHttpRequest");
const xhr = (page, what) => page.evaluate(async (what) => {
  const send = (method, path, body, set = () => {}) => new Promise((ok) => {
    const x = new XMLHttpRequest();
    const events = [];
    for (const name of ["loadstart", "readystatechange", "progress", "load", "loadend", "error", "abort"]) {
      x.addEventListener(name, () => events.push(name === "readystatechange" ? x.readyState : name));
    }
    x.onloadend = () => setTimeout(() => ok({ status: x.status, events: events.filter((e) => e !== "progress").join(), text: x.responseType ? typeof x.response : x.responseText }));
    x.open(method, path);
    set(x);
    x.send(body);
    if (body === "abort") x.abort();
  });
  if (what === "one") return send("GET", "/api/strict/x");
  const form = new FormData();
  form.set("a", "b");
  const sync = new XMLHttpRequest();
  sync.open("GET", "/api/me", false);
  sync.send();
  return {
    get: await send("GET", "/api/strict/x?q"),
    post: await send("post", "/api/strict/x", "text", (x) => x.setRequestHeader("X-Mine", "kept")),
    form: await send("POST", "/api/strict/x", form),
    json: await send("POST", "/api/strict/x", "{}", (x) => x.setRequestHeader("Content-Type", "application/json")),
    typed: await send("GET", "/api/strict/x", null, (x) => (x.responseType = "json")),
    redirect: await send("GET", "/api/redirect?to=/api/strict/r"),
    abort: await send("POST", "/api/strict/never", "abort"),
    sync: sync.status,
    is: new XMLHttpRequest() instanceof XMLHttpRequest && XMLHttpRequest.DONE === 4,
  };
}, what);
const requests = await xhr(page);
for (const name of ["get", "post", "form", "json", "typed", "redirect"]) assert.equal(requests[name].status, 200, `${name}: ${JSON.stringify(requests[name])}`);
assert.equal(requests.get.events, "1,loadstart,2,3,4,load,loadend");
assert.equal(requests.redirect.events, requests.get.events);
assert.equal(JSON.parse(requests.redirect.text).path, "/api/strict/r");
assert.deepEqual([JSON.parse(requests.post.text).mine, JSON.parse(requests.post.text).type], ["kept", "text/plain;charset=UTF-8"]);
assert.match(JSON.parse(requests.form.text).type, /^multipart\/form-data; boundary=/);
assert.equal(JSON.parse(requests.json.text).type, "application/json");
assert.equal(requests.typed.text, "object");
assert.match(requests.abort.events, /abort,loadend$/);
assert.deepEqual([requests.sync, requests.is], [200, true]);
assert.equal((await control("log")).filter((r) => r.Path === "/api/strict/never").length, 0);

step("another origin, which a redirect leads to, has no say about the session");
const sessionBefore = await page.evaluate(() => limpet.state());
const lied = await page.evaluate(async (other) => {
  const to = (what) => "/api/redirect?to=" + encodeURIComponent(other + "/open/liar" + what);
  const xhr = (url) => new Promise((ok) => {
    const x = new XMLHttpRequest();
    x.onloadend = () => ok(x.status);
    x.open("GET", url);
    x.send();
  });
  const said = [];
  for (const what of ["?session_ended", ""]) said.push((await fetch(to(what))).status, await xhr(to(what)));
  return [...said, await limpet.state()];
}, other);
assert.deepEqual(lied, [401, 401, 200, 200, sessionBefore]);
assert.equal((await get(page, "/api/strict/x")).status, 200);
await control("log");

step("a server with another seal key: key_unknown");
const restart = async () => {
  await control("restart");
  await control("log");
};
await restart();
const after = await page.evaluate(() => Promise.all([1, 2, 3, 4].map((n) => fetch("/api/strict/" + n, { method: "POST", body: "x" }).then((r) => r.status))));
assert.deepEqual(after, [200, 200, 200, 200]);
assert.equal((await get(page, "/api/strict/x")).status, 200);
const tries = await control("log");
assert.ok(tries.filter((r) => r.Status === 401).length <= 4 && tries.at(-1).Status === 200 && !tries.at(-1).Delegation, JSON.stringify(tries));
await restart();
assert.deepEqual(await xhr(page, "one").then((r) => [r.status, r.events]), [200, requests.get.events]);
await restart();
assert.equal(await page.evaluate(() => limpet.refresh()), true);

step("challenge");
for (let i = 0; i < 2; i++) assert.equal((await get(page, "/api/challenge", { method: "POST", body: "x" })).status, 200);

step("the app replaces its token");
await page.evaluate(() => fetch("/api/rotate"));
assert.equal((await get(page, "/api/strict/x")).status, 200);
assert.notEqual((await page.evaluate(() => limpet.state())).session, first.state.session);
await page.goto(url + "/open/../api/rotate"); // as a page, whose answer no script sees
await page.waitForFunction(() => globalThis.limpet);
assert.equal((await get(page, "/api/strict/x")).status, 200);
await page.goto(url + "/rotate");
await page.waitForFunction(() => globalThis.limpet);
assert.deepEqual(await xhr(page, "one").then((r) => r.status), 200);

step("a page that goes away says so");
await page.evaluate(() => addEventListener("pagehide", () => void fetch("/api/bye", { method: "POST", body: "x", keepalive: true })));
await page.goto(url + "/open/");
await page.waitForTimeout(200);
assert.deepEqual((await control("log")).filter((r) => r.Path === "/api/bye").map((r) => [r.Status, r.Signed]), [[200, false]]);

step("a page load reads IndexedDB once");
await page.goto(url + "/open/");
await page.waitForFunction(() => globalThis.limpet);
for (let i = 0; i < 5; i++) assert.equal((await get(page, "/api/strict/x")).status, 200);
await page.evaluate(() => limpet.state());
assert.equal(await page.evaluate(() => reads), 1);
await control("log");

step("two tabs");
const tab = await opened();
assert.deepEqual(await tab.evaluate(() => limpet.state().then((s) => s.key)), first.state.key);
assert.deepEqual((await Promise.all([get(page, "/api/strict/x"), get(tab, "/api/strict/x")])).map((r) => r.status), [200, 200]);
// Both log in at once: one after the other, and the last one's key is the key.
await Promise.all([login(page, "bob"), login(tab, "bob")]);
for (const p of [page, tab]) assert.deepEqual(await get(p, "/api/strict/x").then((r) => [r.status, r.user]), [200, "bob"]);
const [one, two] = await Promise.all([page, tab].map((p) => p.evaluate(() => limpet.state())));
assert.equal(one.key, two.key);
assert.equal(one.session, two.session);

step("a browser without BroadcastChannel and locks");
const old = await context.newPage();
await old.addInitScript(() => {
  delete globalThis.BroadcastChannel;
  delete Navigator.prototype.locks;
});
await old.goto(url + "/open/");
await old.waitForFunction(() => globalThis.limpet);
assert.equal((await get(old, "/api/strict/x")).user, "bob");
await login(page, "dora");
assert.equal((await get(old, "/api/strict/x")).user, "dora"); // a refusal has it look
await login(old, "bob");
for (const p of [page, tab]) assert.equal((await get(p, "/api/strict/x")).user, "bob");
await old.close();

step("the bound cookie is renewed by one tab, before its end");
await control("life?s=4");
await page.evaluate(() => limpet.refresh());
await control("log");
await page.waitForTimeout(4500);
const renewals = (await control("log")).filter((r) => r.Path === "/.well-known/limpet/cookie");
assert.ok(renewals.length >= 1 && renewals.length <= 4 && renewals.every((r) => r.Status === 204), JSON.stringify(renewals));
await control("life?s=600");
await page.evaluate(() => limpet.refresh());
assert.ok((await tab.evaluate(() => limpet.state())).cookieUntil > Date.now() + 300_000); // it was told
await page.goto(url + "/page");
assert.equal(await page.title(), "app");

step("workers, more than a server keeps keys for");
await page.waitForFunction(() => globalThis.limpet);
await control("log");
const rounds = await page.evaluate(async () => {
  const ask = (port) => new Promise((ok) => {
    port.onmessage = (e) => ok(e.data.status);
    port.postMessage("/api/strict/worker");
  });
  const workers = Array.from({ length: 10 }, () => new Worker("/open/worker.js", { type: "module" }));
  const shared = new SharedWorker("/open/worker.js", { type: "module" });
  const ports = [...workers, shared.port];
  const all = [];
  for (let round = 0; round < 4; round++) {
    const statuses = [];
    for (const port of ports) statuses.push(await ask(port));
    all.push(statuses.join());
  }
  workers.forEach((w) => w.terminate());
  return all;
});
assert.deepEqual(rounds, Array(4).fill(Array(11).fill(200).join()));
const crowd = (await control("log")).filter((r) => r.Path === "/api/strict/worker");
const pushedOut = crowd.filter((r) => r.Status === 401).length;
assert.ok(pushedOut <= 11, `${pushedOut} refusals`); // once, then each knows how crowded it is

step("a wrong clock");
const late = await context.newPage();
await late.addInitScript(() => {
  const now = Date.now;
  Date.now = () => now() - 3_600_000;
});
await late.goto(url + "/open/");
await late.waitForFunction(() => globalThis.limpet);
for (let i = 0; i < 2; i++) assert.equal((await get(late, "/api/strict/x")).status, 200);
await late.close();
assert.equal((await get(page, "/api/strict/x")).status, 200);

step("offline, and a store that is down");
await context.setOffline(true);
assert.equal(await page.evaluate(() => fetch("/api/strict/x").catch((e) => e.name)), "TypeError");
assert.equal(await page.evaluate(() => limpet.refresh().catch((e) => e.name)), "TypeError");
await context.setOffline(false);
assert.equal((await get(page, "/api/strict/x")).status, 200);
await control("down?on=1");
assert.equal(await page.evaluate(() => fetch("/api/strict/x").then((r) => r.status)), 503);
assert.match(await page.evaluate(() => limpet.refresh().catch((e) => e.message)), /503/);
await control("down");
assert.equal((await get(page, "/api/strict/x")).status, 200);
assert.equal((await page.evaluate(() => limpet.state())).level, "software");

step("a login that ends with a redirect");
const form = await page.evaluate(async (other) => {
  const body = () => new URLSearchParams({ user: "carol", password: "secret" });
  await limpet.login("/login?to=" + encodeURIComponent(other + "/open/liar"), { method: "POST", body: body() });
  const away = (await fetch("/api/strict/x")).status;
  const r = await limpet.login("/login?to=/api/me", { method: "POST", body: body() });
  const manual = await limpet.login("/login?to=/api/me", { method: "POST", body: body(), redirect: "manual" });
  return { away, status: r.status, user: (await r.json()).user, manual: manual.type, level: (await limpet.state()).level };
}, other);
assert.deepEqual(form, { away: 200, status: 200, user: "carol", manual: "opaqueredirect", level: "software" });
assert.deepEqual(await get(page, "/api/strict/x").then((r) => [r.status, r.user]), [200, "carol"]);
await picture(page, "sdk-page");

step("restart of the browser");
const before = await page.evaluate(() => limpet.state());
await context.close();
context = await launch(home);
page = await opened();
assert.deepEqual(await page.evaluate(() => limpet.state()), before);
assert.deepEqual(await get(page, "/api/strict/x").then((r) => [r.status, r.user]), [200, "carol"]);

step("thieves");
const jar = await context.cookies();
const cookie = jar.filter((c) => c.name === "sid").map((c) => `${c.name}=${c.value}`).join("; ");
const curl = async (path, headers) => (await ask(url + path, { Cookie: cookie, ...headers })).status;
assert.equal(await curl("/api/me"), 401);
assert.equal(await curl("/page"), 401);
// A proof that was caught, with the cookies: it was spent.
const caught = new Promise((ok) => page.on("request", (r) => r.url().endsWith("/api/strict/caught") && ok(r.allHeaders())));
await get(page, "/api/strict/caught");
const { signature, "signature-input": input, "limpet-session": session } = await caught;
for (const path of ["/api/strict/caught", "/api/strict/other"]) {
  assert.equal(await curl(path, { Signature: signature, "Signature-Input": input, "Limpet-Session": session }), 401);
}
const thief = await launch(join(profile, "thief"));
await thief.addCookies(jar);
const stolen = await thief.newPage();
// What the bound cookie admits by itself it admits for its last minutes, here too.
await stolen.goto(url + "/open/");
await stolen.waitForFunction(() => globalThis.limpet);
assert.equal((await stolen.evaluate(() => limpet.state())).level, "none");
assert.equal(await stolen.evaluate(() => fetch("/api/strict/x").then((r) => r.status)), 401);
assert.equal(await stolen.evaluate(() => limpet.refresh()), false);
await control("restart"); // bound cookies are over, as they are after some minutes
assert.equal((await stolen.goto(url + "/page")).status(), 401);
assert.equal(await stolen.evaluate(() => fetch("/api/me").then((r) => r.status)), 401);
await thief.close();
assert.equal((await page.goto(url + "/page")).status(), 401); // a page that renews the cookie, and comes again
await page.waitForFunction(() => document.title === "app" && globalThis.limpet);

step("logout");
await page.waitForFunction(() => globalThis.limpet);
const out = await page.evaluate(async () => [(await limpet.logout("/api/logout", { method: "POST" })).status, await limpet.state()]);
assert.deepEqual(out, [204, { level: "none" }]);
assert.equal(await page.evaluate(async () => {
  const db = await new Promise((ok) => (indexedDB.open("limpet").onsuccess = (e) => ok(e.target.result)));
  return new Promise((ok) => (db.transaction("limpet").objectStore("limpet").count().onsuccess = (e) => ok(e.target.result)));
}), 0);
assert.equal(await curl("/api/me"), 401);
await context.close();
assert.deepEqual(errors, []);
step("done");
