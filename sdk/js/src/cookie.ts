// The bound cookie: good for some minutes, renewed by a proven request, for what
// carries no proof: pages, images, WebSockets.

import { exchange } from "./exchange.js";
import { change, cookieSession, lacking, locked, origin, sessions, tell } from "./session.js";
import type { Session } from "./keys.js";

const patience = 30_000; // ms for the server to answer: other tabs wait
const again = 15_000; // ms until the next attempt after one that failed
const idle = 60_000; // ms between looks, where there is nothing to do

/** Renews a session's bound cookie, unless another tab does so just now. */
export function renew(s: Session): Promise<boolean> {
  const before = s.until;
  return locked("cookie", async () => {
    if (s.until !== before) return true;
    const controller = new AbortController();
    const stop = setTimeout(() => controller.abort(), patience);
    const resp = await exchange(new Request(origin + s.refresh, { method: "POST", signal: controller.signal })).finally(() => clearTimeout(stop));
    if (resp.status >= 500) throw new Error("limpet: the cookie is not renewed: status " + resp.status);
    const seconds = /max-age=(\d+)/.exec(resp.headers.get("limpet-cookie") ?? "")?.[1];
    if (!seconds) {
      if (resp.status !== 401) await change(s, { refresh: undefined }); // it is not offered any more
      return false;
    }
    const life = 1000 * Math.max(2, Number(seconds));
    const what = { until: Date.now() + life, life };
    tell({ n: s.n, ...what });
    await change(s, what);
    if (timer !== undefined) wakeIn(0); // to see when that ends
    return true;
  });
}

let timer: ReturnType<typeof setTimeout> | undefined;
let known: number | undefined; // when the cookie ends that due is for
let due = 0; // ms, when this tab renews it

/** Keeps the bound cookie of this page's session alive from now on. */
export function keep(): void {
  if (timer !== undefined || !globalThis.document || lacking()) return;
  wakeIn(0);
  for (const name of ["online", "pageshow"]) addEventListener(name, () => wakeIn(0));
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && wakeIn(0));
}

function wakeIn(ms: number): void {
  clearTimeout(timer);
  timer = setTimeout(wake, ms);
}

async function wake(): Promise<void> {
  wakeIn(idle);
  const s = cookieSession(await sessions());
  if (!s?.refresh) return; // another tab may log in
  if (known !== s.until) {
    known = s.until;
    // One to two minutes before its end, in each tab at another moment.
    due = (known ?? 0) - Math.min(120_000, (s.life ?? 0) / 2) * (0.5 + Math.random() / 2);
  }
  try {
    if (Date.now() < due) wakeIn(Math.min(due - Date.now(), idle));
    else await renew(s); // if it is refused, later again
  } catch {
    wakeIn(again); // offline, most likely
  }
}
