// Starts the Chromium that the tests look through.
import http from "node:http";
import https from "node:https";
import { chromium } from "playwright-core";

// Each *.test leads to this machine, so that sites and their subdomains are there.
const hosts = "MAP *.test 127.0.0.1, EXCLUDE localhost, EXCLUDE 127.0.0.1";

// launch starts Chromium on the profile folder, which may be used again, and
// returns its context. The certificate is trusted whose public key has the hash
// LIMPET_SPKI; a trust for all of them would switch DBSC off.
//
// dbsc has it bind sessions by keys in software; features are more switches.
export async function launch(profile, { dbsc = false, features = [], args = [], ...options } = {}) {
  if (dbsc) features = [...features, "DeviceBoundSessions", "EnableBoundSessionCredentialsSoftwareKeysForManualTesting"];
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.LIMPET_CHROMIUM,
    headless: true,
    ignoreDefaultArgs: ["--disable-features", "--enable-features"],
    args: [
      "--no-sandbox", // root in containers has none
      "--disable-gpu",
      "--disable-quic",
      "--disable-sync",
      `--host-resolver-rules=${hosts}`,
      ...(process.env.LIMPET_SPKI ? [`--ignore-certificate-errors-spki-list=${process.env.LIMPET_SPKI}`] : []),
      ...(features.length ? [`--enable-features=${features.join(",")}`] : ["--disable-features=DeviceBoundSessions"]),
      ...args,
    ],
    ...options,
  });
  context.setDefaultTimeout(20_000);
  return context;
}

// picture keeps a screenshot with the test's artifacts.
export async function picture(page, name) {
  await page.screenshot({ path: `${process.env.LIMPET_ARTIFACTS}/${name}.png`, fullPage: true });
}

// ask sends a GET that no browser has a hand in, and returns its status and text.
// Names of the URL's lead to this machine, and every certificate will do.
export function ask(url, headers = {}) {
  const { host, hostname, pathname, port, protocol, search } = new URL(url);
  const to = { host: hostname === "localhost" ? hostname : "127.0.0.1", port, servername: hostname, path: pathname + search, headers: { Host: host, ...headers }, rejectUnauthorized: false };
  return new Promise((ok, fail) => {
    (protocol === "https:" ? https : http).get(to, (r) => {
      let text = "";
      r.on("data", (part) => (text += part));
      r.on("end", () => ok({ status: r.statusCode, text }));
    }).on("error", fail);
  });
}
