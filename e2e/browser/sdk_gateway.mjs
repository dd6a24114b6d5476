// The SDK behind a gateway: the app knows nothing of it but the script in its page.
import assert from "node:assert/strict";
import { ask, launch } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url } = process.env;

const context = await launch(profile);
const page = await context.newPage();
await page.goto(url + "/");
await page.waitForFunction(() => globalThis.limpet);
const login = await page.evaluate(async () => {
  const r = await limpet.login("/login", { method: "POST", body: new URLSearchParams({ username: "alice" }) });
  return [r.status, new URL(r.url).pathname, await r.text(), (await limpet.state()).level];
});
assert.deepEqual(login, [200, "/me", "alice", "software"]);

// The app gives a new token with each answer, as those do that keep the session in
// the cookie; several are on their way at once.
const some = await page.evaluate(async () => {
  const statuses = [];
  for (let i = 0; i < 4; i++) {
    statuses.push(...(await Promise.all([0, 1, 2].map(() => fetch("/me", { method: "POST", body: "x" }).then((r) => r.status)))));
  }
  return statuses.filter((s) => s !== 200);
});
assert.deepEqual(some, []);

const cookie = (await context.cookies()).map((c) => `${c.name}=${c.value}`).join("; ");
assert.match(cookie, /sid=/);
assert.equal((await ask(url + "/me", { Cookie: cookie })).status, 401);
assert.deepEqual(await page.evaluate(async () => [(await limpet.logout("/logout", { method: "POST" })).status, (await limpet.state()).level]), [200, "none"]);
await context.close();
