// A service worker that proves what a page's markup loads: images, styles,
// scripts, fonts; and requests of scripts that do not use this package. Pages are
// never fetched again here: a request that another site makes would come out of
// that as one of this site's own, signed.

import { exchange, passes, tooLarge } from "./exchange.js";
import { atHand, native, origin } from "./session.js";

interface FetchEvent extends Event {
  request: Request;
  clientId: string;
  respondWith(r: Promise<Response>): void;
}

// What markup loads without CORS can carry a proof only if it is made anew as a
// request of this origin. Media want ranges, and parts of them.
const remade = ["image", "style", "script", "font"];

addEventListener("fetch", (e) => {
  const event = e as FetchEvent;
  const r = event.request;
  const url = new URL(r.url);
  const all = atHand();
  if (url.origin !== origin || url.pathname.startsWith("/.well-known/limpet") || !event.clientId || (all && !all.length)) return;
  if (r.mode === "no-cors") {
    if (r.method === "GET" && remade.includes(r.destination) && !r.headers.has("range")) event.respondWith(remake(r));
  } else if ((r.mode === "cors" || r.mode === "same-origin") && !passes(r)) {
    event.respondWith(prove(r));
  }
});

/** Sends a request with its proof. What is too large goes as it is. */
async function prove(r: Request): Promise<Response> {
  const whole = r.clone();
  try {
    return await exchange(new Request(r));
  } catch (e) {
    if (e === tooLarge) return native(whole);
    throw e;
  }
}

/** Fetches what markup loads, as a request of this origin; if that fails, as it was. */
async function remake(r: Request): Promise<Response> {
  try {
    const resp = await exchange(new Request(r, { mode: "same-origin", referrer: r.referrer, referrerPolicy: r.referrerPolicy }));
    if (resp.status !== 401) return resp;
  } catch {
    // A redirect to another site, which markup may follow.
  }
  return native(r);
}
