// Times fetch with a proof beside fetch as the browser has it, in turn, in one
// page of a real Chromium. It prints the medians as JSON, in microseconds.
import { launch } from "../e2e/browser/chromium.mjs";

const { LIMPET_PROFILE: profile, LIMPET_URL: url, LIMPET_PAIRS: pairs } = process.env;

const context = await launch(profile);
const page = await context.newPage();
await page.goto(url);
await page.waitForFunction(() => globalThis.limpet);
await page.evaluate(() => limpet.login("/login", { method: "POST" }));
await page.reload();
await page.waitForFunction(() => globalThis.limpet);
if (!(await page.evaluate(() => crossOriginIsolated))) throw new Error("the page's clock is coarse");
const results = await page.evaluate(async (pairs) => {
  const median = (v) => v.sort((a, b) => a - b)[v.length >> 1] * 1000;
  const timed = async (fetch, init) => {
    const start = performance.now();
    const resp = await fetch("/api", init);
    await resp.text();
    if (resp.status !== 200) throw new Error("status " + resp.status);
    return [performance.now() - start, sent - start];
  };
  const first = (await timed(limpet.fetch))[1] * 1000;
  const measure = async (init) => {
    const plain = [], proven = [], added = [], before = [];
    for (let i = 0; i < pairs; i++) {
      // Whichever comes first has the better or the worse of it.
      const order = i % 2 ? [limpet.fetch, bare] : [bare, limpet.fetch];
      const times = [];
      for (const fetch of order) times.push(await timed(fetch, init));
      if (i % 2) times.reverse();
      plain.push(times[0][0]);
      proven.push(times[1][0]);
      added.push(times[1][0] - times[0][0]);
      before.push(times[1][1]);
    }
    return { plain: median(plain), proven: median(proven), added: median(added), before: median(before) };
  };
  await measure();
  return { first, get: await measure(), post: await measure({ method: "POST", body: "x".repeat(1024) }) };
}, Number(pairs));
await context.close();
console.log(JSON.stringify(results));
