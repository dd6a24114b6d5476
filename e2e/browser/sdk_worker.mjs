// The SDK's service worker: what it signs, and what it must not.
import assert from "node:assert/strict";
import { ask, launch } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_OTHER: other } = process.env;

const context = await launch(profile);
const page = await context.newPage();
const control = async (what) => JSON.parse((await ask(`${url}/control/${what}`)).text) ?? [];
const settled = async () => (await page.waitForTimeout(300), control("log"));

// The page does not install the SDK: all signatures are the worker's.
await page.goto(url + "/open/?plain");
await page.waitForFunction(() => globalThis.limpet);
assert.equal(await page.evaluate(() => limpet.login("/login", { method: "POST", body: new URLSearchParams({ user: "alice", password: "secret" }) }).then((r) => r.status)), 200);
await page.evaluate(async () => {
  await navigator.serviceWorker.register("/sw.js");
  await navigator.serviceWorker.ready;
});
await page.reload();
await page.waitForFunction(() => globalThis.limpet && navigator.serviceWorker.controller);
await control("log");

// What markup loads, from routes that want a proof.
const loaded = await page.evaluate(async (other) => {
  const load = (name, set) => new Promise((ok) => {
    const element = document.createElement(name);
    element.onload = () => ok("load");
    element.onerror = () => ok("error");
    set(element);
    document.head.append(element);
  });
  return {
    image: await load("img", (e) => (e.src = "/api/strict/a.png")),
    style: await load("link", (e) => ((e.rel = "stylesheet"), (e.href = "/api/strict/a.css"))),
    moved: await load("img", (e) => (e.src = "/api/redirect?to=/api/b.png")),
    fetch: await fetch("/api/strict/x", { method: "POST", body: "x" }).then((r) => r.status),
    get: await fetch("/api/strict/get").then((r) => r.status),
    large: await fetch("/api/large", { method: "POST", body: new Blob([new Uint8Array((64 << 20) + 1)]) }).then((r) => r.status),
    own: await limpet.fetch("/api/strict/own").then((r) => r.status),
    other: await fetch(other + "/open/evil").then((r) => r.status),
    away: await load("img", (e) => (e.src = "/api/redirect?to=" + encodeURIComponent(other + "/evil.png"))), // the answer is no image
  };
}, other);
assert.deepEqual(loaded, { image: "load", style: "load", moved: "load", fetch: 200, get: 200, large: 200, own: 200, other: 200, away: "error" });
let log = await settled();
for (const path of ["/api/strict/a.png", "/api/strict/a.css", "/api/strict/x", "/api/strict/get", "/api/strict/own"]) {
  assert.ok(log.some((r) => r.Path === path && r.Signed && r.Status === 200), path);
}

// Navigations, forms, frames, beacons: as they were.
await page.evaluate(() => {
  navigator.sendBeacon("/api/beacon", "x");
  const frame = document.createElement("iframe");
  frame.src = "/api/frame";
  document.body.append(frame);
});
await page.goto(url + "/page");
await page.waitForFunction(() => globalThis.limpet);
log = await settled();
for (const path of ["/api/beacon", "/api/frame", "/page"]) {
  assert.ok(log.some((r) => r.Path === path && !r.Signed), path + JSON.stringify(log));
}

// Another site posts a form, and frames, links and loads what it likes.
const evil = await context.newPage();
for (const method of ["post", "get"]) {
  await evil.goto(other + "/");
  await Promise.all([evil.waitForURL(url + "/api/form-*"), evil.evaluate(([url, method]) => {
    const form = document.createElement("form");
    Object.assign(form, { method, action: `${url}/api/form-${method}?amount=1` });
    document.body.append(form);
    form.submit();
  }, [url, method])]);
}
await evil.goto(other + "/");
await evil.evaluate(async (url) => {
  const frame = document.createElement("iframe");
  frame.src = url + "/api/framed";
  document.body.append(frame);
  new Image().src = url + "/api/strict/evil.png";
  await fetch(url + "/api/strict/evil", { method: "POST", body: "x", mode: "no-cors", credentials: "include" }).catch(() => {});
}, url);
log = await settled();
const caused = log.filter((r) => /form-|framed|evil/.test(r.Path));
assert.deepEqual([...new Set(caused.map((r) => r.Path))].sort(), ["/api/form-get", "/api/form-post", "/api/framed", "/api/strict/evil", "/api/strict/evil.png"]);
assert.ok(caused.every((r) => !r.Signed && r.Site === "cross-site"), JSON.stringify(caused));
// A form that is posted has no cookie, bound or not: both are SameSite=Lax.
assert.ok(caused.filter((r) => r.Method === "POST").every((r) => !r.Bound && r.Status === 401), JSON.stringify(caused));
await context.close();
