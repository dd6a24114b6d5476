// The demo page, clicked through.
import assert from "node:assert/strict";
import { launch, picture } from "./chromium.mjs";
import { accessible, looks, quiet } from "./axe.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_PLAIN: plain } = process.env;

const context = await launch(profile, { viewport: { width: 1200, height: 900 } });
const page = await context.newPage();
const complaints = quiet(page);
const asked = [];
page.on("request", (request) => asked.push(request.url()));
const has = (locator, text) => locator.filter({ hasText: text }).first().waitFor();
const said = page.locator("#login-said");
const button = (name) => page.getByRole("button", { name, exact: true });
const thief = page.frameLocator("#thief");

// An authenticator in software, which says that its user is there and verified.
const devtools = await context.newCDPSession(page);
await devtools.send("WebAuthn.enable");
const { authenticatorId } = await devtools.send("WebAuthn.addVirtualAuthenticator", {
  options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
});

await page.goto(url);
await has(thief.locator("#mood"), "waits for a token");
await looks(page, "demo-stranger");
await page.emulateMedia({ colorScheme: "light" });

// By keyboard alone.
await page.getByLabel("User name").focus();
await page.keyboard.type("alice");
await page.keyboard.press("Tab");
await page.keyboard.type("wrong");
await page.keyboard.press("Enter");
await has(said, "wrong user name or password");
await page.getByLabel("Password").fill("a password that does not count");
await button("Register").focus();
await page.keyboard.press("Enter");
await has(page.locator("#level"), "software: the key is in this browser's profile");
await has(page.locator("#who"), "alice");
assert.match(await page.locator("#key").textContent(), /^[\w-]{43}$/);
assert.equal(await page.getByLabel("Password").inputValue(), "");
await has(said, "Registered.");

// Calls, with a proof each.
await button("GET /authenticated").click();
await has(page.locator("#call-said"), "Admitted, with a proof.");
const names = () => page.locator("#headers tbody td:first-child").allTextContents();
const proof = () => page.locator("#headers tbody tr", { hasText: /^Signature(?!-)/ }).locator("td").last().textContent();
assert.ok((await names()).includes("Signature-Input"), String(await names()));
const first = await proof();
await page.getByLabel("What to send").fill("hello, world");
await button("POST /echo").click();
await has(page.locator("#answer"), '"bytes":12');
assert.ok((await names()).includes("Content-Digest"), String(await names()));
assert.notEqual(await proof(), first);

// The thief has token and proof, and gets nowhere.
await button("Let the thief have it").click();
await has(page.locator("#thief-said"), "Each try was refused.");
const tries = thief.locator("#tries li");
await has(tries, "With the token: 401 proof_required");
await has(tries, "With your last request, sent again: 401 nonce_spent");
await has(tries, /With its proof, on another request: 401 (proof_invalid|body_mismatch)/);
await looks(page, "demo");
await page.emulateMedia({ colorScheme: "light" });
await button("GET /authenticated").click(); // the user is still in
await has(page.locator("#call-said"), "Admitted, with a proof.");
const token = await page.locator("#token").inputValue();
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
await button("Copy it").click();
await has(page.locator("#thief-said"), "Copied.");
assert.equal(await page.evaluate(() => navigator.clipboard.readText()), token);

// A reload keeps the session: the key stays in the browser.
await page.reload();
await has(page.locator("#who"), "alice");
await has(page.locator("#level"), "software");

// A passkey, made and used.
await button("Make a passkey").click();
await has(said, "The passkey is kept.");
await button("Make a passkey").click(); // in the same authenticator: the first one stays
await has(said, "There is a passkey of yours already.");
assert.equal((await devtools.send("WebAuthn.getCredentials", { authenticatorId })).credentials.length, 1);
await button("Log out").click();
await has(said, "Logged out.");
await button("Log in with a passkey").click();
await has(page.locator("#who"), "alice");
await has(page.locator("#level"), "software");
await button("GET /authenticated").click();
await has(page.locator("#call-said"), "Admitted, with a proof.");
assert.notEqual(await page.locator("#token").inputValue(), token);
// Again, with a counter that has gone on.
await button("Log out").click();
await has(said, "Logged out.");
await button("Log in with a passkey").click();
await has(page.locator("#who"), "alice");
// One that is not there, and one that nobody here knows.
await button("Log out").click();
await has(said, "Logged out.");
const { credentials } = await devtools.send("WebAuthn.getCredentials", { authenticatorId });
await devtools.send("WebAuthn.clearCredentials", { authenticatorId });
await button("Log in with a passkey").click();
await has(said, "No passkey was chosen.");
await devtools.send("WebAuthn.addCredential", { authenticatorId, credential: { ...credentials[0], userHandle: btoa("x".repeat(32)) } });
await button("Log in with a passkey").click();
await has(said, "this passkey is not known here");
// One whose counter went back is one of two.
await devtools.send("WebAuthn.clearCredentials", { authenticatorId });
await devtools.send("WebAuthn.addCredential", { authenticatorId, credential: { ...credentials[0], signCount: 0 } });
await button("Log in with a passkey").click();
await has(said, "this passkey is not known here");

// Without a key the session is the thief's too.
await page.getByLabel("User name").fill("alice");
await page.getByLabel("Password").fill("a password that does not count");
await page.getByLabel("Bind the session to a key of this browser").uncheck();
await button("Log in").click();
await has(page.locator("#level"), "none: whoever has the token has the session");
await button("Let the thief have it").click();
await has(page.locator("#thief-said"), "The thief is in your session.");
await has(tries, "With the token: 200: in, as alice");
await accessible(page, "robbed");
await picture(page, "demo-robbed");
await button("Log out").click();
await has(said, "Logged out.");

// On an address there are no passkeys, but keys for sessions; on a plain name neither.
await page.goto(plain);
await button("Log in with a passkey").click();
await has(said, "passkeys belong to a name, not to an address");
await page.goto(plain.replace("127.0.0.1", "plain.test"));
await has(page.locator("#unable"), "no secure origin");
assert.ok(await page.getByLabel("Bind the session to a key of this browser").isChecked() === false);
await page.getByLabel("User name").fill("alice");
await page.getByLabel("Password").fill("a password that does not count");
await button("Log in").click();
await has(page.locator("#level"), "none");
await accessible(page, "without keys");

const away = asked.filter((u) => !u.startsWith(url) && !u.startsWith(plain) && !u.startsWith(plain.replace("127.0.0.1", "plain.test")));
assert.deepEqual(away, [], "the page loads from elsewhere");
assert.deepEqual(asked.filter((u) => u.includes("does%20not") || u.includes(token)), [], "a secret is in an address");
assert.deepEqual(complaints, []);
await context.close();
