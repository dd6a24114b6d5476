// A browser that keeps a key for each login, before an app that knows nothing of it.
import assert from "node:assert/strict";
import https from "node:https";
import { launch, picture } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_THIEF: thiefs, LIMPET_URL: url, LIMPET_OTHER: other, LIMPET_DIRECT: direct, LIMPET_CONTROL: control, LIMPET_SCENARIO: scenario } = process.env;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const started = Date.now();
const told = (words) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s: ${words}`);
const decisions = async (result) => (await (await fetch(`${control}/decisions`)).json()).filter((d) => !result || d.Result === result);
const post = async (path, form = {}) => assert.ok((await fetch(control + path, { method: "POST", body: new URLSearchParams(form) })).ok, path);

// until waits for the nth decision with a result, and returns that.
async function until(result, n) {
  for (let i = 0; i < 200; i++) {
    const all = await decisions(result);
    if (all.length >= n) return all[n - 1];
    await sleep(50);
  }
  throw new Error(`no ${n}. ${result}: ${(await decisions()).map((d) => `${d.Result} ${d.Reason}${d.Cause} ${d.Path}`).join("\n")}`);
}

// Six signatures in nine minutes are not enough for this.
const noQuota = ["DeviceBoundSessions:RefreshQuota/false"];
const context = await launch(profile, { dbsc: true, features: noQuota });
const page = await context.newPage();
const api = (path = "/api", init) => page.evaluate(async ([path, init]) => { const r = await fetch(path, init); return { status: r.status, ...(await r.json()) } }, [path, init]);
const forgetBound = () => context.clearCookies({ name: "__Host-limpet" });
const cookies = async () => Object.fromEntries((await context.cookies(url)).map((c) => [c.name, c]));
// bare sends the cookies of a jar without a browser.
const bare = (jar, headers = {}) => new Promise((done, fail) => {
  const cookie = Object.entries(jar).map(([name, value]) => `${name}=${value}`).join("; ");
  https.get(direct + "/api", { rejectUnauthorized: false, headers: { host: new URL(url).host, cookie, ...headers } }, (r) => {
    let body = "";
    r.on("data", (b) => (body += b)).on("end", () => done({ status: r.statusCode, headers: r.headers, body: JSON.parse(body) }));
  }).on("error", fail);
});
const loggedIn = async () => {
  await page.goto(`${url}/login`);
  await page.click("button");
  await page.waitForURL(`${url}/me`);
};
const shows = async (level) => assert.equal(await page.textContent("#level"), level);

// A login registers a key, with no script on the page.
await loggedIn();
await until("completed", 1);
const registered = Date.now();
told("registered");
{
  const offered = await decisions("offered");
  assert.equal(offered.length, 1);
  const jar = await cookies();
  const bound = jar["__Host-limpet"];
  assert.ok(bound && bound.httpOnly && bound.secure && bound.sameSite === "Lax" && bound.path === "/", JSON.stringify(jar));
  const left = bound.expires - Date.now() / 1000;
  assert.ok(left > 590 && left < 605, `${left} s left`);
}
assert.equal((await api()).level, "browser");
await page.goto(`${url}/bound`);
await shows("browser");

// Without the cookie it refreshes: on a navigation, and once for requests at one time.
await forgetBound();
await page.goto(`${url}/me`);
await shows("browser");
await until("refreshed", 1);
await forgetBound();
const parallel = await Promise.all([0, 1, 2, 3, 4].map((n) => api("/api", { method: "POST", body: `body ${n}` })));
parallel.forEach((r, n) => assert.deepEqual([r.status, r.level, r.body], [200, "browser", `body ${n}`]));
told(`refreshed: ${(await decisions("refreshed")).length}`);
assert.equal((await decisions("refreshed")).length, 2);

// A store that is out of order costs nobody the session.
await post("/outage", { on: "yes" });
assert.equal((await page.goto(`${url}/me`)).status(), 503);
await forgetBound();
assert.equal((await page.goto(`${url}/me`)).status(), 503);
assert.equal((await page.goto(`${url}/me`)).status(), 503);
await post("/outage", { on: "no" });
for (let i = 0; (await page.goto(`${url}/me`)).status() !== 200; i++) {
  told(`after the outage: ${JSON.stringify((await decisions()).at(-1))}`);
  assert.ok(i < 20);
  await sleep(500);
}
await shows("browser");
assert.ok((await cookies()).sid);
assert.equal((await decisions("ended")).length, 0);
told("out of order, and back");

// For ten seconds after a registration requests are admitted that were sent before.
await sleep(Math.max(0, 10_200 - (Date.now() - registered)));

if (scenario === "all") {
  // A link on another site: browsers do not refresh for it.
  for (const path of ["/me?a=b&c", "/me?hash#there"]) {
    await forgetBound();
    await page.goto(`${other}/?to=${encodeURIComponent(url + path)}`);
    const answers = [];
    const listen = (r) => r.request().isNavigationRequest() && answers.push(r.status());
    page.on("response", listen);
    await page.click("#link");
    await page.waitForSelector("#level");
    page.off("response", listen);
    assert.equal(page.url(), url + path);
    assert.deepEqual(answers, [401, 200]);
    await shows("browser");
  }
  told("from another site");
}

// A thief has the cookies that last, and no key.
{
  const jar = await cookies();
  const sid = { sid: jar.sid.value };
  const refused = await bare(sid);
  assert.equal(refused.status, 401);
  assert.equal(refused.body.reason, "proof_required");
  assert.equal((await bare({ ...sid, "__Host-limpet": "x".repeat(55) })).status, 401);
  assert.equal((await bare(sid, { "secure-session-skipped": `quota_exceeded;session_identifier="${(await api()).session}"` })).status, 503);
  assert.equal((await bare({ ...sid, "__Host-limpet": jar["__Host-limpet"].value })).status, 200); // for the minutes that it lasts
  told("curl refused");

  if (scenario === "all") {
    const thief = await launch(thiefs, { dbsc: true, features: noQuota, colorScheme: "light" });
    await thief.addCookies((await context.cookies(url)).filter((c) => c.name !== "__Host-limpet"));
    const stolen = await thief.newPage();
    assert.equal((await stolen.goto(`${url}/me`)).status(), 401);
    await stolen.waitForSelector("#stuck:not([hidden])");
    await picture(stolen, "stuck");
    const asked = (await decisions("refused")).length;
    await sleep(1500);
    assert.equal((await decisions("refused")).length, asked, "the page goes on asking");
    await stolen.emulateMedia({ colorScheme: "dark" });
    await stolen.setViewportSize({ width: 360, height: 640 });
    await picture(stolen, "stuck-dark-small");
    // Who lost the key gets to the login.
    await stolen.click("form button");
    await stolen.waitForURL(`${url}/login`);
    assert.deepEqual((await thief.cookies(url)).map((c) => c.name), []);

    // So does who has no key where the session has one that a script would keep.
    const device = await (await fetch(`${control}/device`, { method: "POST" })).text();
    await thief.addCookies([{ name: "sid", value: device, url }]);
    const loaded = [];
    stolen.on("response", (r) => loaded.push(new URL(r.url()).pathname));
    assert.equal((await stolen.goto(`${url}/me`)).status(), 401);
    await stolen.waitForSelector("#stuck:not([hidden])");
    assert.ok(loaded.includes("/.well-known/limpet/browser.js"), loaded.join());
    await thief.close();
    told("thief refused");
  }
}

if (scenario === "all") {
  // The app replaces its cookie: the session is the same.
  const { session } = await api();
  await page.evaluate(() => fetch("/rotate"));
  await forgetBound();
  await page.goto(`${url}/me`);
  await shows("browser");
  assert.equal((await api()).session, session);
  assert.equal((await decisions("rebound")).length, 1);
  told("rotated");

  // A route that takes bound sessions only waits for the key.
  await page.goto(`${url}/login?to=/bound`);
  await page.click("button");
  while ((await (await page.waitForSelector("#level, #stuck:not([hidden])")).getAttribute("id")) === "stuck") await page.click("#again"); // on a slow machine
  assert.equal(page.url(), `${url}/bound`);
  await shows("browser");
  await until("completed", 2);
  told("bound at once");

  // Somebody logs in twice. Whichever session the browser asks for first, the older
  // one is told to go, if it is asked for at all, and the newer one goes on.
  await loggedIn();
  await until("completed", 3);
  for (let i = 0; i < 2; i++) {
    await forgetBound();
    await page.goto(`${url}/me`);
    await shows("browser");
  }
  assert.notEqual((await api()).session, session);
  const gone = await decisions("ended");
  assert.ok(gone.length < 3 && gone.every((d) => d.Cause === "other-login"), JSON.stringify(gone));
  told("logged in twice");
}

// A logout ends it.
await page.goto(`${url}/me`);
const sid = (await cookies()).sid.value;
const before = (await decisions("ended")).length;
await page.click("form button");
await page.waitForURL(`${url}/login`);
await forgetBound();
await page.goto(`${url}/login`);
assert.equal((await until("ended", before + 1)).Cause, "ended");
assert.equal((await bare({ sid })).status, 401);
told("logged out");

// So does the operator.
const n = (await decisions("completed")).length;
await loggedIn();
await until("completed", n + 1);
await post("/revoke");
await page.goto(`${url}/me`); // which tells it to forget the cookie, if it was not told so about the icon
assert.equal((await page.goto(`${url}/me`)).url(), `${url}/login`);
assert.ok((await decisions("refused")).some((d) => d.Reason === "session_ended"));
await forgetBound();
await page.goto(`${url}/login`);
assert.equal((await until("ended", before + 2)).Cause, "ended");
told("revoked");

await context.close();
