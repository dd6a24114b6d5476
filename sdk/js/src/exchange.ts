// Requests with their proofs, and again where that can help.

import { answerFrom, covered, heard, native, origin, prove, sessionAtHand, sessionOf, stale, type Answer } from "./session.js";
import { digest, join, type Bytes } from "./wire.js";

/** Bytes of a body that is read into memory, as its digest is sent before it. */
export const maxBody = 64 << 20;

const maxHops = 5;

export const tooLarge = new TypeError("limpet: a body over 64 MiB cannot be proven");

/** Reads a request's body; undefined if there is none. */
export async function take(request: Request): Promise<Bytes | undefined> {
  if (repeatable(request.method)) return;
  if (!request.body) return new Uint8Array(await request.arrayBuffer()); // Firefox shows no bodies of requests
  const parts: Bytes[] = [];
  const reader = request.body.getReader();
  for (let n = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return join(...parts);
    parts.push(value as Bytes);
    if ((n += value.length) > maxBody) {
      reader.cancel().catch(() => {});
      throw tooLarge;
    }
  }
}

/** Reports whether a body, as far as it says how long it is, is too long to be read. */
export function large(body: unknown): boolean {
  const size = (b: unknown): number =>
    b instanceof FormData ? Array.from(b.values()).reduce((n, v) => n + size(v), 0) : ((b as Blob)?.size ?? (b as Bytes)?.byteLength ?? (b as string)?.length ?? 0);
  return size(body) > maxBody;
}

const ours = ["content-digest", "limpet-challenge", "limpet-delegation", "limpet-device", "limpet-session", "signature", "signature-input"];

/** Gives headers these fields of ours, and no others. */
function dress(headers: Headers, fields?: Map<string, string>): void {
  for (const name of ours) headers.delete(name);
  fields?.forEach((value, name) => headers.set(name, value));
}

/** What is sent of a request whose body was taken or sent. */
export function outgoing(request: Request, body: Bytes | undefined, fields?: Map<string, string>): Request {
  // What is changed resets the referrer.
  const { referrer, referrerPolicy } = request;
  const out = body ? new Request(request, { body, referrer, referrerPolicy }) : new Request(request);
  dress(out.headers, fields);
  return out;
}

export const answerOf = (r: Response): Answer => answerFrom(r.url, { status: r.status, header: (name) => r.headers.get(name) });

const repeatable = (method: string) => /^(GET|HEAD)$/.test(method);

/** Waits for the answer to a request without a proof. */
export async function unproven(answer: Promise<Response>): Promise<Response> {
  const resp = await answer;
  if (heard(answerOf(resp))) stale(); // another tab may have logged in, and could not tell
  return resp;
}

/**
 * Sends a request of this origin with its proof. body is what it has, where that is
 * known without taking it.
 */
export async function exchange(request: Request, body?: Bytes): Promise<Response> {
  const authorization = request.headers.get("authorization");
  let at = sessionAtHand(authorization) ?? (await sessionOf(authorization));
  const [s, inCookie] = at;
  if (!s) return unproven(native(request));
  let whole = !!body || repeatable(request.method);
  if (!whole) body = await take(request);
  let hops = 0;
  for (const refusals: string[] = []; ; ) {
    const { method } = request;
    const proof = await prove(at, refusals, method, new URL(request.url), authorization, body?.length ? await digest(body) : undefined, request.keepalive);
    let resp: Response;
    try {
      let out = request;
      if (whole) proof?.fields.forEach((value, name) => request.headers.set(name, value));
      else out = outgoing(request, body, proof?.fields);
      whole = false;
      resp = await native(out);
    } catch (e) {
      // A redirect may lead to another origin, which does not know these fields. What
      // can be repeated goes there with the bound cookie in place of the proof.
      if (!proof || !inCookie || !repeatable(method) || !covered(s) || request.signal.aborted) throw e;
      return native(outgoing(request, undefined));
    }
    const answer = answerOf(resp);
    const reason = proof ? proof.answered(answer) : heard(answer);
    if (!reason) return resp;
    const next = hop(request, resp);
    if (next && hops++ < maxHops) {
      [request, body] = [next, undefined];
      refusals.length = 0;
    } else if (!proof?.again(reason) || !(proof.mend(reason, answer, method) || (await proof.look(reason).catch(() => false)))) {
      return resp;
    }
    resp.body?.cancel().catch(() => {});
    at = await sessionOf(authorization);
  }
}

/**
 * Returns the request that a redirect led to and that was refused there: the
 * browser sends the proof of the first target along. What a 307 or 308 would
 * repeat cannot be told from what a 303 would not, and is not repeated.
 */
export function hop(request: Request, resp: Response): Request | undefined {
  if (!resp.redirected || new URL(resp.url).origin !== origin) return;
  const { cache, credentials, integrity, mode, redirect, referrer, referrerPolicy, signal } = request;
  const headers = new Headers(request.headers);
  dress(headers);
  headers.delete("content-type");
  const method = request.method === "HEAD" ? "HEAD" : "GET";
  return new Request(resp.url, { cache, credentials, headers, integrity, method, mode, redirect, referrer, referrerPolicy, signal });
}

/** Reports whether a request goes as it is: it cannot have a proof, has one, or brings no cookie. */
export const passes = (r: Request) => r.mode === "no-cors" || r.mode === "navigate" || r.headers.has("signature-input") || r.credentials === "omit" && !r.headers.has("authorization");
