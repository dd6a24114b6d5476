// Looks at pages as people do who use them with other senses, or with other colours.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { picture } from "./chromium.mjs";

const source = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

// accessible fails if axe finds something in the page. It is run by the debugger,
// which the page's policy does not bind.
export async function accessible(page, what) {
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.html} ${n.failureSummary}`).join("; ")}`), [], what);
}

// looks keeps pictures of the page as it is: light, dark and narrow, and has axe
// look at each.
export async function looks(page, name) {
  const size = page.viewportSize();
  for (const [look, scheme, width] of [["light", "light", size.width], ["dark", "dark", size.width], ["narrow", "light", 360]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: size.height });
    await accessible(page, `${name}, ${look}`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name}, ${look}: it is wider than the screen`);
    for (const frame of await page.locator("iframe").all()) await frame.scrollIntoViewIfNeeded(); // else it is not painted
    await picture(page, `${name}-${look}`);
  }
  await page.setViewportSize(size);
}

// quiet returns what the page complains of from now on, of its own scripts and of
// what its policy stopped. Answers that are errors are not among it.
export function quiet(page) {
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text());
  });
  return complaints;
}
