// A security token that is plugged in, used by a Chromium whose dialogs somebody
// answers: on a screen in memory, with a keyboard of xdotool's. ../vm runs it.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { launch } from "./chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_PARTY: party, LIMPET_URL: url, LIMPET_SCREEN: screen } = process.env;
const pin = "246810";
const patience = 120_000; // the machine may be emulated

const start = Date.now();
const say = (words) => console.log(`${((Date.now() - start) / 1000).toFixed(1)} s: ${words}`);

fs.mkdirSync(`${profile}/Default`, { recursive: true });
fs.writeFileSync(`${profile}/Default/Preferences`, JSON.stringify({ credentials_enable_service: false })); // no bubble that wants to save passwords
const context = await launch(profile, { headless: false, timeout: patience, viewport: null, args: ["--in-process-gpu", "--disable-background-networking", "--disable-component-update", "--window-size=900,700"] });
context.setDefaultTimeout(patience);
const page = context.pages()[0] ?? (await context.newPage());
say("Chromium runs");

// field reports whether a dialog with a field for a PIN is on the screen: nothing
// else there is a thin blue line. The dialogs are Chromium's own, so that no page and
// no DevTools see them. The screen is a file of X's format xwd.
function field() {
  const xwd = fs.readFileSync(screen);
  const [size, , , , width, height] = Array.from({ length: 6 }, (_, i) => xwd.readUInt32BE(4 * i));
  const [lineSize, colours] = [xwd.readUInt32BE(48), xwd.readUInt32BE(76)];
  const blue = (x, y) => {
    const at = size + 12 * colours + y * lineSize + 4 * x;
    return xwd[at] > 160 && xwd[at + 1] < 128 && xwd[at + 2] < 64;
  };
  for (let y = 8; y < height - 8; y++) {
    for (let x = 0, run = 0; x < width; x++) {
      run = blue(x, y) ? run + 1 : 0;
      if (run === 100 && !blue(x, y - 8) && !blue(x, y + 8)) return true;
    }
  }
  return false;
}

async function until(what, done) {
  for (const begin = Date.now(); !done(); await sleep(200)) {
    if (Date.now() - begin > patience) throw new Error(`waited in vain for ${what}`);
  }
}

const keys = (...args) => execFileSync("xdotool", args, { stdio: "inherit" });

// withPIN does something for which Chromium asks for the PIN: for a new one twice.
async function withPIN(times, work) {
  const outcome = work();
  outcome.catch(() => {}); // until it is awaited
  const asked = until("the dialog", field).then(async () => {
    await sleep(500); // the keyboard's focus comes last
    for (let i = 0; i < times; i++) {
      if (i > 0) keys("key", "Tab");
      keys("type", "--delay", "50", pin);
    }
    keys("key", "Return");
  });
  await Promise.race([asked, outcome.then(() => assert.fail("Chromium did not ask for the PIN"))]);
  const value = await outcome;
  await until("the dialog to go", () => !field());
  return value;
}

// ceremony has the page do what the relying party asks for, and the relying party
// check it.
const ceremony = (kind, query) =>
  page.evaluate(async ([kind, query]) => {
    const ask = async (path, body) => {
      const answer = await fetch(path, { method: "POST", body });
      if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
      return answer.json();
    };
    const { publicKey } = await ask(`/${kind}/options?${query}`);
    const parse = { create: "parseCreationOptionsFromJSON", get: "parseRequestOptionsFromJSON" }[kind];
    const credential = await navigator.credentials[kind]({ publicKey: PublicKeyCredential[parse](publicKey) });
    return ask(`/${kind}`, JSON.stringify(credential.toJSON()));
  }, [kind, query]);

// Without a PIN.
await page.goto(party);
assert.equal((await ceremony("create", "")).verified, false);
assert.equal((await ceremony("get", "")).verified, false);
say("a second factor was made and used");

// For the PRF Chromium wants a PIN, whatever the site wants, and has one made.
const made = await withPIN(2, () => ceremony("create", "prf=1"));
assert.deepEqual([made.verified, made.prf], [true, true]);
say("Chromium set a PIN, and made a credential with a PRF");
const outputs = [];
for (const salt of ["one", "one", "another"]) {
  const { verified, output } = await withPIN(1, () => ceremony("get", `prf=1&salt=${salt}`));
  assert.equal(verified, true);
  assert.equal(Buffer.from(output, "base64").length, 32);
  outputs.push(output);
}
assert.equal(outputs[0], outputs[1]);
assert.notEqual(outputs[0], outputs[2]);
say("its PRF was evaluated");

// A passkey.
const has = (locator, text) => locator.filter({ hasText: text }).first().waitFor();
const said = page.locator("#login-said");
const button = (name) => page.getByRole("button", { name, exact: true });
await page.goto(url);
await page.getByLabel("User name").fill("alice");
await page.getByLabel("Password").fill("a password that does not count");
await button("Register").click();
await has(said, "Registered.");
await withPIN(1, async () => {
  await button("Make a passkey").click();
  await has(said, "The passkey is kept.");
});
await button("Log out").click();
await has(said, "Logged out.");
await withPIN(1, async () => {
  await button("Log in with a passkey").click();
  await has(page.locator("#who"), "alice");
});
say("a passkey was made and logged in with");
await context.close();
