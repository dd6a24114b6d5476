// The operator's console, clicked through.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { launch, picture } from "./chromium.mjs";
import { accessible, looks, quiet } from "./axe.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_APP: app, LIMPET_OTHER: other, LIMPET_TOKEN: token } = process.env;

const context = await launch(profile, { viewport: { width: 1200, height: 900 } });
const page = await context.newPage();
const complaints = quiet(page);
const asked = [];
page.on("request", (request) => asked.push(request.url()));
const rows = page.locator("#sessions tbody tr");
const summary = page.locator("#summary");
const has = (locator, text) => locator.filter({ hasText: text }).first().waitFor();

// Nobody gets in without the token.
await page.goto(`${url}/console`);
await page.getByLabel("Admin token").waitFor();
assert.equal(page.url(), `${url}/console/`);
await looks(page, "signin");
await page.emulateMedia({ colorScheme: "light" });
await page.keyboard.type("not the token at all");
await page.keyboard.press("Enter");
await has(page.locator("#signin-error"), "this is not the admin token");
assert.ok(await page.locator("#console").isHidden());

// With it, by keyboard alone.
await page.getByLabel("Admin token").fill("");
await page.keyboard.type(` ${token}\n`);
await page.locator("#console").waitFor();
await has(page.locator("#store"), "answers");
await has(page.locator("#tpm"), "not used by this server");
assert.equal(await page.evaluate(() => document.cookie), "", "a script can read the cookie");
const [cookie] = await context.cookies(`${url}/console/`);
assert.equal(cookie.httpOnly && cookie.sameSite, "Strict");
assert.equal((await context.cookies(`${url}/sessions`)).length, 0);

// More sessions than it keeps do not stop it.
await has(summary, "The first 5,000 that the server found");
assert.equal(await rows.count(), 50);
await page.getByRole("button", { name: "After" }).click();
await has(page.locator("#page"), "Page 2 of 100");

// Traffic: a thief's, and of somebody without a key.
for (let i = 0; i < 5; i++) {
  assert.equal((await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer laptop" } })).status, 401);
  assert.equal((await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer phone" } })).status, 200);
}
await has(page.locator("#feed tbody tr"), "refused: proof_required");
await has(page.locator("#counts tr"), "refused: proof_required");
await has(page.locator("#counts tr", { has: page.getByRole("rowheader", { name: "admitted", exact: true }) }), "5");
assert.equal(await page.locator("#feed tbody tr", { hasText: "refused" }).count(), 5);

// Filters, by keyboard.
await page.getByLabel("User, the whole name").focus();
await page.keyboard.type("alice\n");
await has(summary, "3 live sessions like that.");
assert.equal(await rows.count(), 3);
await has(rows, "nothing"); // what a session without a key proves itself by
await looks(page, "console");
await page.emulateMedia({ colorScheme: "light" });
await page.getByLabel("Level").selectOption("software");
await page.getByRole("button", { name: "Show", exact: true }).click();
await has(summary, "1 live session like that.");
const key = rows.locator("td[data-label='Device key'] button");
await key.focus();
await page.keyboard.press("Enter");
await has(summary, "2 live sessions like that."); // of two users
assert.equal(await page.evaluate(() => document.activeElement.id), "summary", "the focus is lost with the row that had it");
// What a user is called is text.
await has(rows, "<img src=x onerror=alert(1)> & bob");
assert.equal(await page.locator("#sessions img").count(), 0);
await page.getByLabel("User, the whole name").fill("nobody");
await page.getByLabel("Device key, the whole fingerprint").fill("");
await page.keyboard.press("Enter");
await has(summary, "No live session is like that.");

// Sorting.
const userColumn = page.locator("#sessions").getByRole("columnheader", { name: "User", exact: true });
await page.getByRole("button", { name: "All", exact: true }).click();
await has(summary, "The first 5,000");
await userColumn.getByRole("button").click();
assert.equal(await userColumn.getAttribute("aria-sort"), "ascending");
const names = await rows.locator("td:first-child").allTextContents();
assert.deepEqual(names, [...names].sort((a, b) => a.localeCompare(b)));

// Revoking asks first; Escape and Keep are no.
await page.getByLabel("User, the whole name").fill("alice");
await page.keyboard.press("Enter");
await has(summary, "3 live sessions");
const dialog = page.getByRole("dialog");
const id = createHash("sha256").update("phone").digest("base64url").slice(0, 12);
const phone = page.getByRole("button", { name: `Revoke session ${id} of alice` });
await phone.click();
await dialog.waitFor();
await accessible(page, "the question");
await picture(page, "question");
await page.keyboard.press("Escape");
await dialog.waitFor({ state: "hidden" });
await phone.focus();
await page.keyboard.press("Enter");
await dialog.waitFor();
await page.keyboard.press("Enter"); // which is Keep
await dialog.waitFor({ state: "hidden" });
assert.equal((await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer phone" } })).status, 200);
await phone.click();
await dialog.getByRole("button", { name: "Revoke it" }).click();
await has(summary, "Revoked. 2 live sessions like that.");
assert.equal((await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer phone" } })).status, 401);
await has(page.locator("#feed tbody tr"), "revoked");
await page.getByRole("button", { name: "Revoke all of alice" }).click();
await dialog.getByRole("button", { name: "Revoke all" }).click();
await has(summary, "Revoked 2. No live session is like that.");
assert.equal((await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer tablet" } })).status, 401);

// Pausing holds the page still.
await page.getByRole("button", { name: "Pause" }).click();
const before = await page.locator("#feed tbody tr").count();
await fetch(`${app}/authenticated`, { headers: { Authorization: "Bearer laptop" } });
await page.waitForTimeout(1200);
assert.equal(await page.locator("#feed tbody tr").count(), before);
await page.getByRole("button", { name: "Pause" }).click();
await has(page.locator("#feed tbody tr"), "session_ended");

// A tab stays signed in over a reload; another has no key, and signs in beside it.
await page.reload();
await has(summary, "The first 5,000");
const second = await context.newPage();
const more = quiet(second);
await second.goto(`${url}/console/`);
await second.getByLabel("Admin token").fill(token);
await second.keyboard.press("Enter");
await has(second.locator("#summary"), "The first 5,000");
await page.getByRole("button", { name: "All", exact: true }).click();
await has(summary, "The first 5,000");

// What others of this machine's ports, who are sent the cookie, can do with it.
const foreign = await context.newPage();
await foreign.goto(`${other}/console/api/sessions`);
const tries = await foreign.evaluate(async (url) => {
  const results = [];
  for (const init of [{}, { credentials: "include" }, { credentials: "include", mode: "no-cors" }, { method: "DELETE", credentials: "include" }, { headers: { "Limpet-Console": "x" }, credentials: "include" }]) {
    results.push(await fetch(`${url}/console/api/sessions?user=alice`, init).then((r) => r.type === "opaque" ? "opaque" : `${r.status}`, () => "blocked"));
  }
  const frame = document.createElement("iframe");
  frame.src = `${url}/console/`;
  document.body.append(frame);
  await new Promise((done) => (frame.onload = done));
  return { results, framed: frame.contentDocument !== null };
}, url);
assert.deepEqual(tries.results, ["blocked", "blocked", "opaque", "blocked", "blocked"]);
assert.equal(tries.framed, false);

// Signing out signs all of its tabs out.
await page.getByRole("button", { name: "Sign out" }).click();
await page.getByLabel("Admin token").waitFor();
assert.equal(await rows.count(), 0);
await has(second.locator("#signin-error"), /sign in first|signed out/); // by itself
await page.reload();
await page.getByLabel("Admin token").waitFor();

assert.deepEqual(asked.filter((u) => u.includes(token)), [], "the token is in an address");
assert.deepEqual(asked.filter((u) => !u.startsWith(`${url}/console`)), [], "the page loads from elsewhere");
assert.deepEqual([...complaints, ...more], []);
await context.close();
