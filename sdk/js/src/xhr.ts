// XMLHttpRequest with proofs: asynchronous ones of this origin.

import { large } from "./exchange.js";
import { answerFrom, atHand, origin, prove, sessionOf, type Proof } from "./session.js";
import { digest, type Bytes } from "./wire.js";

/** An asynchronous request of this origin, from open() to its end. */
interface Call {
  method: string;
  url: string;
  rest: unknown[]; // of what open() was given
  headers: [name: string, value: string][];
  body?: Bytes;
  type?: string | null; // of the body, as a browser would say
  proof?: Proof;
  refusals: string[]; // that there were
  looked?: Promise<unknown>; // for what may mend a refusal
  waiting?: boolean; // for a proof, or for the end of a refusal
  hidden?: boolean; // the page sees nothing of a refusal that may be mended
}

/** Returns a class like the browser's own, whose requests carry proofs. */
export function provenXHR(Base: typeof XMLHttpRequest): typeof XMLHttpRequest {
  const own = Base.prototype;
  const calls = new WeakMap<XMLHttpRequest, Call>();
  const absolute = (url: string | URL) => new URL(url, globalThis.document?.baseURI ?? location.href).href.split("#")[0];
  const header = (call: Call, name: string) => call.headers.filter(([n]) => n === name).map(([, v]) => v).join(", ") || null;
  const open = (x: XMLHttpRequest, call: Call) => (own.open as (...args: unknown[]) => void).call(x, call.method, call.url, ...call.rest);

  /** Proves a request and sends it. */
  async function go(x: XMLHttpRequest, call: Call): Promise<void> {
    const sum = call.body?.length ? await digest(call.body) : undefined;
    const method = call.method.replace(/^(get|head|post|put|delete|options)$/i, (m) => m.toUpperCase());
    const authorization = header(call, "authorization");
    call.proof = header(call, "signature-input") ? undefined : await sessionOf(authorization).then((s) => prove(s, call.refusals, method, new URL(call.url), authorization, sum)).catch(() => undefined);
    if (calls.get(x) !== call) return; // aborted, or opened anew
    call.waiting = call.hidden = false;
    if (call.type && !header(call, "content-type")) own.setRequestHeader.call(x, "content-type", call.type);
    call.proof?.fields.forEach((value, name) => own.setRequestHeader.call(x, name, value));
    own.send.call(x, call.body);
  }

  /** Hides a refusal that may be mended. */
  function refused(x: XMLHttpRequest, call: Call): void {
    const { proof } = call;
    const answer = answerFrom(x.responseURL, { status: x.status, header: (name: string) => x.getResponseHeader(name) });
    const reason = proof?.answered(answer);
    if (!proof || !reason || !proof.again(reason)) return;
    if (x.responseURL !== call.url && new URL(x.responseURL).origin === origin) {
      // A redirect led there, with the proof of the first target.
      call.method = /^head$/i.test(call.method) ? "HEAD" : "GET";
      call.url = x.responseURL;
      call.body = call.type = undefined;
      call.headers = call.headers.filter(([n]) => n !== "content-type");
    } else if (!proof.mend(reason, answer, call.method)) {
      if (!/^(proof|session)_/.test(reason)) return;
      call.looked = proof.look(reason); // what it finds shows when the request is sent again
    }
    call.hidden = call.waiting = true;
  }

  /** Sends once more, when a refusal has ended. */
  function again(x: XMLHttpRequest, call: Call): void {
    open(x, call);
    for (const [name, value] of call.headers) own.setRequestHeader.call(x, name, value);
    const then = () => void go(x, call);
    (call.looked ?? Promise.resolve()).then(then, then);
  }

  return class extends Base {
    constructor() {
      super();
      // These come before the page's own.
      for (const name of ["readystatechange", "loadstart", "progress", "load", "loadend", "error", "timeout"]) {
        this.addEventListener(name, (e) => {
          const call = calls.get(this);
          if (!call) return;
          if (name === "readystatechange" && this.readyState === 2 && this.status === 401) refused(this, call);
          if (call.hidden || (name === "loadstart" && call.refusals.length)) e.stopImmediatePropagation();
          if (call.hidden && name === "loadend") again(this, call);
        });
      }
    }

    open(...args: [string, string | URL]): void {
      super.open(...args); // also says what is wrong with them
      calls.delete(this);
      const [method, url, ...rest] = args as [string, string | URL, ...unknown[]];
      const call: Call = { method, url: absolute(url), rest, headers: [], refusals: [] };
      if (new URL(call.url).origin === origin && (!rest.length || rest[0])) calls.set(this, call);
    }

    setRequestHeader(name: string, value: string): void {
      super.setRequestHeader(name, value);
      calls.get(this)?.headers.push([name.toLowerCase(), value]);
    }

    send(body?: Document | XMLHttpRequestBodyInit | null): void {
      const call = calls.get(this);
      const all = atHand();
      if (!call || call.waiting || (all && !all.length) || this.readyState !== 1 || large(body) || (globalThis.Document && body instanceof Document)) {
        if (!call?.waiting) calls.delete(this);
        return super.send(body); // as it is, or to be told that it is sent already
      }
      call.waiting = true;
      const content = body == null || /^(GET|HEAD)$/i.test(call.method) ? undefined : new Response(body as XMLHttpRequestBodyInit);
      call.type = content?.headers.get("content-type");
      void (async () => {
        if (content) call.body = new Uint8Array(await content.arrayBuffer());
        await go(this, call);
      })();
    }

    abort(): void {
      const unsent = calls.get(this)?.waiting && this.readyState === 1;
      calls.delete(this);
      super.abort();
      if (unsent) for (const name of ["abort", "loadend"]) this.dispatchEvent(new ProgressEvent(name));
    }
  };
}
