// The sessions of this browser, and proofs for their requests. What one tab
// learns it tells the others; ephemeral keys are each tab's and worker's own.

import * as keys from "./keys.js";
import type { Session } from "./keys.js";
import { addSignature, base64, bytes, delegate, fromBase64, parseServer, sha256, subtle, type Ephemeral } from "./wire.js";

export const native = globalThis.fetch?.bind(globalThis);
export const origin = globalThis.origin;
const maxTries = 6; // of one request
const maxClock = 86_400_000; // ms that a server's clock may be off

/** Why no session can be bound here; undefined if one can. */
export function lacking(): string | undefined {
  if (!subtle) return globalThis.isSecureContext ? "no WebCrypto" : "no secure origin: neither https nor localhost";
  try {
    if (globalThis.indexedDB) return;
  } catch {
    // storage is blocked
  }
  return "no IndexedDB";
}

/** Runs f while no other tab or worker runs one of this name. */
export async function locked<T>(name: string, f: () => Promise<T>): Promise<T> {
  let began = false;
  try {
    return await navigator.locks.request("limpet " + name, () => ((began = true), f()));
  } catch (e) {
    if (began) throw e;
    // There are no locks, or none for a page whose storage is blocked. Then several
    // may run, which is more than needed and does no harm.
    return f();
  }
}

// The sessions as they were read last, and whether they are still that.
let list: Session[] = [];
let fresh = false;
let reading: Promise<Session[]> | undefined;
let generation = 0;

let abandoned: number[] = []; // logins of pages that went away

let clock = 0; // ms that the server's clock is ahead
export const serverTime = () => (Date.now() + clock) / 1000;

/** What went wrong with the storage last. */
export let trouble: string | undefined;
export const note = (e: unknown) => {
  trouble = String(e);
};

/** The sessions, the newest last. The first call reads them, later ones do not. */
export const sessions = (): Promise<Session[]> => (fresh ? Promise.resolve(list) : (reading ??= read()));

/** The sessions if they are known without waiting. */
export const atHand = () => (fresh ? list : undefined);

/** Has the next call read the sessions anew. */
export function stale(): void {
  generation++;
  fresh = false;
  reading = undefined;
}

async function read(): Promise<Session[]> {
  const g = generation;
  listen();
  let stored: Session[] = [];
  try {
    stored = await keys.load();
  } catch (e) {
    note(e); // the page goes on without
  }
  if (g !== generation) return sessions();
  abandoned = stored.filter((s) => !s.id && s.made < Date.now() - 600_000).map((s) => s.n);
  // Each stays the object that it was: its ephemeral key is found by it.
  list = stored.filter((s) => s.id).map((s) => Object.assign(list.find((l) => l.n === s.n) ?? {}, s));
  clock = last(list)?.clock ?? clock;
  fresh = true;
  reading = undefined;
  return list;
}

export const last = <T>(a: T[]): T | undefined => a[a.length - 1];

/** The session of requests that carry no token the page can see. */
export const cookieSession = (all: Session[]) => last(all.filter((s) => s.cookie !== false));

/** Reports whether the bound cookie of a session is there, for what goes without a proof. */
export const covered = (s?: Session) => (s?.until ?? 0) > Date.now();

/** Adds a session that was just written down, in place of those whose keys nobody will miss. */
export async function begin(s: Session): Promise<void> {
  const before = (await sessions()).filter((o) => o.n !== s.n);
  // The new cookie has taken the old one's place; of bearer tokens there may be some.
  const over = before.filter((o, i) => (s.cookie && o.cookie !== false) || i < before.length - 7);
  list = [...before.filter((o) => !over.includes(o)), s];
  await forget(over.map((s) => s.n).concat(abandoned));
}

/** Forgets a session and its key. */
export async function end(s: Session): Promise<void> {
  list = list.filter((o) => o !== s);
  await forget([s.n]);
}

async function forget(ns: number[]): Promise<void> {
  if (ns.length) await keys.remove(...ns).catch(note);
  tell("changed");
}

/** Changes a session, here and in the store. */
export function change(s: Session, what: Partial<Session>): Promise<unknown> {
  Object.assign(s, what);
  if (!fresh) stale(); // what is read just now is older
  return keys.update(s.n, what).catch(note); // then it is for this page only
}

// --- other tabs and workers

let channel: BroadcastChannel | undefined;

export function tell(what: "changed" | Partial<Session>): void {
  try {
    channel?.postMessage(what);
  } catch {
    // closed, as the page goes away
  }
}

function listen(): void {
  if (channel) return;
  try {
    channel = new BroadcastChannel("limpet");
  } catch {
    return; // there is none: what others did shows when a request is refused
  }
  channel.onmessage = ({ data }) => {
    if (data === "changed") return stale();
    const s = list.find((s) => s.n === data.n);
    if (s) Object.assign(s, data);
  };
  if (hooked || !globalThis.document) return;
  hooked = true;
  // An open channel can keep a page from being put aside; and a page that was put
  // aside has heard nothing.
  addEventListener("pagehide", () => {
    channel?.close();
    channel = undefined;
  });
  addEventListener("pageshow", (e) => {
    if (!e.persisted) return;
    stale();
    listen();
  });
}
let hooked = false;

// --- ephemeral keys

/** A session's ephemeral key in this tab. */
interface Live {
  e?: Ephemeral & { id: string; server: string }; // the session's ID, the server's point
  making?: Promise<void>;
  met?: boolean; // a request that brought it was admitted
  crowded?: boolean; // more tabs are at work than a server keeps keys for
}
const lives = new WeakMap<Session, Live>();

function live(s: Session): Live {
  let l = lives.get(s);
  if (!l) lives.set(s, (l = {}));
  return l;
}

/** The ephemeral key for a session, if it is there and good for some time. */
function keyAtHand(s: Session): Live["e"] {
  const { e } = live(s);
  return e && e.id === s.id && serverTime() < e.until - Math.min(30, (e.until - e.from) / 4) ? e : undefined;
}

/** Makes the ephemeral key for a session; undefined if the server says nothing of a key of its own. */
async function ephemeral(s: Session): Promise<Live["e"]> {
  const l = live(s);
  for (let tries = 0; !keyAtHand(s) && tries < 3; tries++) {
    await (l.making ??= make(s, l).finally(() => (l.making = undefined)));
  }
  return l.e;
}

async function make(s: Session, l: Live): Promise<void> {
  let server = s.server ? parseServer(s.server) : undefined;
  if (!server || server.expires < serverTime()) {
    const says = await ask();
    server = parseServer(says?.key ?? "") ?? server; // an old one is better than none
    if (says) void change(s, { server: says.key });
  }
  if (!server) return;
  const id = s.id!;
  try {
    l.e = { ...(await delegate(s.key, fromBase64(id), new URL(origin).host, server, serverTime())), id, server: base64(server.point) };
    l.met = false;
  } catch (e) {
    note(e); // a key that is lost means to log in again: the server will say so
    l.e = undefined;
  }
}

// --- what a server says of itself

export interface WellKnown {
  key: string;
  session: "cookie" | "bearer";
  refresh?: string;
  id?: string; // of the session that the request's cookie is the token of, if that is bound
  device?: string; // the thumbprint of that session's key
}

/** Asks the server what it is; undefined if it says nothing. */
export async function ask(): Promise<WellKnown | undefined> {
  const resp = await native(origin + "/.well-known/limpet", { cache: "no-store" });
  const says = resp.ok ? await resp.json().catch(() => undefined) : undefined;
  return parseServer(says?.key ?? "") && says;
}

/** The session's ID in a field: ":…:". */
export const unfield = (f?: string) => f?.slice(1, -1);

/** Sets the clock by an answer, and reports whether it can be right now. */
export function adjust(date: string | null): boolean {
  const ahead = Date.parse(date ?? "") - Date.now();
  if (!(Math.abs(ahead) < maxClock)) return false;
  clock = ahead;
  return true;
}

// --- proofs

let challenge: string | null = null; // that proofs cover from now on

/** What an answer says; header is as of Response.headers.get. */
export interface Answer {
  status: number;
  header(name: string): string | null;
}

/** An answer as far as it is this origin's: a redirect may have led to another one, whose word on sessions counts for nothing. */
export const answerFrom = (url: string, a: Answer): Answer =>
  url && new URL(url).origin !== origin ? { status: 0, header: () => null } : a;

export interface Proof {
  /** Reports whether another try makes sense, where the same reason has been there before. */
  again(reason: string): boolean;
  fields: Map<string, string>;
  /** Learns from the answer, and returns why it is a refusal; undefined if it is none. */
  answered(a: Answer): string | undefined;
  /** Does what can be done at once about a refusal, and reports whether that helps. */
  mend(reason: string, a: Answer, method: string): boolean;
  /** The same for what takes a while. */
  look(reason: string): Promise<boolean>;
}

let token: string | undefined; // the last bearer token
let tokenID: string; // and its session's ID

/** The session that a request is of, if any here, and whether its token travels in a cookie. */
export type Found = [s?: Session, inCookie?: boolean];

const bearerOf = (authorization: string | null) => authorization && /^bearer +(.*)$/i.exec(authorization)?.[1];

/** The session of a request with this Authorization, if that is known without waiting. */
export function sessionAtHand(authorization: string | null): Found | undefined {
  const bearer = bearerOf(authorization);
  if (!fresh || (bearer && bearer !== token && list.length)) return;
  const s = bearer && list.find((s) => !s.cookie && s.id === tokenID);
  return s ? [s, false] : [cookieSession(list), true];
}

/** The session of a request with this Authorization. */
export async function sessionOf(authorization: string | null): Promise<Found> {
  const bearer = bearerOf(authorization);
  if (subtle && bearer && bearer !== token) {
    const id = base64(await sha256(bytes(bearer)));
    [token, tokenID] = [bearer, id];
  }
  await sessions();
  return sessionAtHand(authorization) ?? sessionOf(authorization); // another request has had another token
}

/** What a refusal or the answer to any request says for the next proof. */
export function heard(a: Answer): string | undefined {
  challenge = a.header("limpet-challenge") ?? challenge;
  if (a.status !== 401) return;
  return /Limpet error="(\w+)"/.exec(a.header("www-authenticate") ?? "")?.[1];
}

/** Returns the challenge if proofs are to cover one. */
export const currentChallenge = () => challenge;

/**
 * Proves a request of a session. It returns undefined if there is none, and the
 * request is to go as it is. refusals are those of the request before. sure is for a request that cannot be sent twice.
 */
export async function prove([s, inCookie]: Found, refusals: string[], method: string, url: URL, authorization: string | null, digest?: string, sure?: boolean): Promise<Proof | undefined> {
  const e = s && (keyAtHand(s) ?? (await ephemeral(s)));
  if (!s || !e) return;
  const l = live(s);
  const fields = new Map<string, string>();
  if (digest) fields.set("content-digest", digest);
  if (inCookie) fields.set("limpet-session", `:${e.id}:`);
  else fields.set("authorization", authorization!);
  const covered = challenge;
  if (covered) fields.set("limpet-challenge", covered);
  await addSignature(method, url, fields, serverTime(), e.mac, e.keyID);
  fields.delete("authorization");
  const brings = !l.met || l.crowded || sure || false;
  if (brings) fields.set("limpet-delegation", e.delegation);

  return {
    fields,
    again(reason) {
      const before = refusals.includes(reason + e.id);
      return refusals.push(reason + e.id) < maxTries && (!before || s.id !== e.id); // an app may replace its token all the time
    },
    answered(a) {
      const server = parseServer(a.header("limpet-key") ?? "");
      // The app goes on with another token.
      if (server?.session && server.session !== s.id) void change(s, { id: server.session, server: server.text });
      if (brings && a.status !== 401 && a.status < 500 && l.e === e) l.met = true;
      return heard(a);
    },
    mend(reason, a, method) {
      switch (reason) {
        case "key_unknown": {
          const text = / key="([^"]+)"/.exec(a.header("www-authenticate") ?? "")?.[1];
          const server = parseServer(text ?? "");
          // The server has another key by now; or it knew this one, and has no room for so many.
          if (server && base64(server.point) !== e.server) void change(s, { server: text });
          else if (!brings && l.e === e && serverTime() < e.until) l.crowded = true;
          break;
        }
        case "clock_skew":
          if (!adjust(a.header("date"))) return false;
          void change(s, { clock });
          break;
        case "challenge_required":
          return challenge !== covered;
        case "nonce_spent": // a browser may send a request twice, where that is harmless
          return /^(GET|HEAD)$/.test(method);
        default:
          return s.id !== e.id; // the app's token was replaced meanwhile
      }
      if (l.e === e) l.e = undefined;
      return true;
    },
    async look(reason) {
      if (!/^(proof_required|proof_invalid|session_ended|session_unbound)$/.test(reason)) return false;
      stale(); // another tab may have logged in
      const [now] = await sessionOf(authorization);
      if (now !== s || now.id !== e.id) return !!now;
      // A page may have been loaded with a new cookie. Its answer no script sees.
      const says = inCookie ? await ask() : undefined;
      const id = unfield(says?.id);
      if (id && says!.device === s.name && id !== e.id) {
        void change(s, { id, server: says!.key });
        return true;
      }
      if (reason === "session_ended") await end(s);
      return false;
    },
  };
}
