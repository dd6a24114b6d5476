/**
 * Binds login sessions to a key that stays in this browser, and proves each
 * request with it, so that a copied cookie or token is worth nothing elsewhere.
 *
 * The key lies in the browser's profile on disk: that is level "software".
 */

import { add, remove, update } from "./keys.js";
import { answerOf, exchange, hop, large, maxBody, outgoing, passes, take, tooLarge, unproven } from "./exchange.js";
import { atHand, begin, change, covered, currentChallenge, end, adjust, ask, cookieSession, heard, lacking, last, locked, native, note, origin, serverTime, sessionOf, sessions, stale, trouble, unfield, type Answer } from "./session.js";
import { keep, renew } from "./cookie.js";
import { addSignature, bytes, deviceField, digest, keyID, newDeviceKey, parseServer, urlOf } from "./wire.js";
import { provenXHR } from "./xhr.js";

let leaving = false; // the page, for good or to be put aside
if (globalThis.document) {
  addEventListener("pagehide", () => (leaving = true), true);
  addEventListener("pageshow", () => (leaving = false), true);
}

/** What a page may show of the session. */
export interface State {
  /** "software": a key in this browser's profile; "none": requests go as they are. */
  level: "software" | "none";
  /** Why it is "none", where that is not for want of a login. */
  reason?: string;
  /** The device key's JWK thumbprint (RFC 7638). */
  key?: string;
  /** The session's ID, SHA-256 of its token, in base64url. */
  session?: string;
  /** When the bound cookie ends, in milliseconds since 1970; the SDK renews it before. */
  cookieUntil?: number;
}

/** Tells whether this browser has a key for a session. */
export async function state(): Promise<State> {
  const s = lacking() ? undefined : last(await sessions());
  if (s) return { level: "software", key: s.name, session: urlOf(s.id!), ...(s.until && { cookieUntil: s.until }) };
  const reason = lacking() ?? trouble;
  return { level: "none", ...(reason && { reason }) };
}

/**
 * fetch of the browser, with a proof where the request is of a session of this
 * origin. Other requests go as they are, untouched.
 */
export async function fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  let request: Request;
  try {
    const url = new URL((input as Request).url ?? input, globalThis.document?.baseURI ?? location.href);
    if (url.origin !== origin) return native(input, init);
    if (atHand() && !atHand()!.length) return unproven(native(input, init));
    request = new Request(input, init);
  } catch {
    return native(input, init); // which says what is wrong with it
  }
  if (passes(request)) return native(request);
  // A page that goes away does not live to see a signature.
  if (leaving && request.keepalive && covered(cookieSession(atHand() ?? []))) return native(request);
  const body = init?.body;
  // Texts are the one kind that need not be read back.
  if (typeof body === "string" && body && body.length < maxBody) return exchange(request, bytes(body));
  if (large(body)) {
    const [s, inCookie] = await sessionOf(request.headers.get("authorization"));
    if (s && !(inCookie && covered(s))) throw tooLarge;
    return native(request);
  }
  return exchange(request);
}

/**
 * Sends the app's own login request, as fetch does, with the offer of a new
 * device key. If the server binds the session to it, requests are proven from then on.
 * A browser that can keep no key logs in without one.
 */
export async function login(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  const request = new Request(input, init);
  if (new URL(request.url).origin !== origin || lacking() || passes(request)) return native(request);
  // One after the other, over all tabs: the last one has cookie and key.
  return locked("login", () => offer(request));
}

async function offer(request: Request): Promise<Response> {
  const made = Date.now();
  let n: number, key: CryptoKey, name: string, device: string;
  try {
    const pair = await newDeviceKey();
    [key, name, device] = [pair.privateKey, await keyID(pair.publicKey), await deviceField(pair.publicKey)];
    n = await add({ key, name, made }); // before the server knows it
  } catch (e) {
    note(e);
    return native(request);
  }
  let bound = false;
  try {
    const url = new URL(request.url);
    const body = await take(request);
    const sum = body?.length ? await digest(body) : undefined;
    let resp: Response, answer: Answer;
    for (const tried = new Set<string>(); ; ) {
      const fields = new Map([["limpet-device", device]]);
      if (sum) fields.set("content-digest", sum);
      const covered = currentChallenge();
      if (covered) fields.set("limpet-challenge", covered);
      await addSignature(request.method, url, fields, serverTime(), key, name);
      resp = await native(outgoing(request, body, fields));
      answer = answerOf(resp);
      const reason = heard(answer);
      const better = reason === "clock_skew" ? adjust(answer.header("date")) : reason === "challenge_required" && currentChallenge() !== covered;
      if (!reason || !better || tried.has(reason)) break;
      tried.add(reason);
    }
    // The answer to a login that ended with a redirect, no script sees.
    const server = parseServer(answer.header("limpet-key") ?? "");
    const may = resp.ok || resp.redirected || resp.type === "opaqueredirect";
    const says = may || server ? await ask().catch(() => undefined) : undefined;
    const id = server?.session ?? (says?.device === name ? unfield(says.id) : undefined);
    if (!id) return resp;
    bound = true;
    const what = { id, cookie: says && says.session === "cookie", refresh: says?.refresh, server: server?.text ?? says!.key };
    const s = { n, key, name, made, ...what };
    await update(n, what).catch(note); // then it is for this page only
    await begin(s);
    if (s.refresh) await renew(s).catch(() => false); // else it is tried again
    keep();
    // What it led to was asked for with the login's signature.
    const next = !resp.ok && hop(request, resp);
    return next ? exchange(next) : resp;
  } finally {
    if (!bound) await remove(n).catch(note);
  }
}

/**
 * Sends the app's own logout request, proven, and forgets the key when the answer is
 * not an error, or says that the session is over.
 */
export async function logout(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  const headers = new Headers(init?.headers ?? (input as Request).headers);
  const [s] = await sessionOf(headers.get("authorization"));
  const resp = await fetch(input, init);
  if (s && (resp.ok || resp.type === "opaqueredirect" || resp.status === 401)) await end(s);
  return resp;
}

/**
 * Renews the bound cookie now. It resolves to true if the cookie is fresh, to
 * false if this browser has no key for the session; it rejects if the server cannot be asked.
 */
export async function refresh(): Promise<boolean> {
  if (lacking()) return false;
  stale(); // another tab may know more
  const s = cookieSession(await sessions());
  if (!s) return false;
  if (!s.refresh) {
    const says = await ask();
    if (!says?.refresh) return false;
    await change(s, { refresh: says.refresh, cookie: says.session === "cookie" });
  }
  return renew(s);
}

/**
 * Has fetch and XMLHttpRequest of this page or worker prove the requests that go
 * to its own origin, and keeps the bound cookie alive. Synchronous XMLHttpRequests
 * go as they are.
 */
export function install(): void {
  if (globalThis.fetch === fetch) return;
  globalThis.fetch = fetch;
  if (globalThis.XMLHttpRequest) globalThis.XMLHttpRequest = provenXHR(XMLHttpRequest);
  keep();
}
