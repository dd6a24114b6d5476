// The operator's console. What it knows of the server it asks the admin API for,
// below api/ on this page's own port.
import { draw, lines } from "./chart.js";

const most = 5000; // sessions that are kept here; a filter finds the others
const perPage = 50;
const feedRows = 50;
const keyName = "limpet-console-key";

const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem(keyName) ?? "";
let signal = new AbortController(); // of everything that runs while signed in

// el makes an element. Text is only ever text.
function el(name, properties = {}, ...children) {
  const { data, role, ...rest } = properties;
  const node = Object.assign(document.createElement(name), rest);
  if (data !== undefined) node.dataset.label = data;
  if (role !== undefined) node.setAttribute("role", role);
  node.append(...children);
  return node;
}

class SignedOut extends Error {}

async function ask(path, init = {}) {
  const answer = await fetch(path, { cache: "no-store", ...init, headers: { "Limpet-Console": key, ...init.headers } });
  if (answer.ok) return answer;
  const words = await answer.json().then((body) => body.message, () => `the server answers ${answer.status}`);
  if (answer.status === 401) throw new SignedOut(words);
  throw new Error(words);
}

const api = (path, init) => ask(`api/${path}`, init);

// lines of JSON, as they come.
async function* jsonLines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// failed tells what went wrong, or asks to sign in again.
function failed(error, words = "", where = "trouble") {
  if (error.name === "AbortError") return;
  if (error instanceof SignedOut) {
    showSignIn(error.message);
    return;
  }
  // What fetch throws when nobody answers says nothing to people.
  const why = error instanceof TypeError ? "the server does not answer" : error.message;
  $(where).textContent = words + why;
}

// Signing in

function showSignIn(words = "") {
  signal.abort();
  key = "";
  sessionStorage.removeItem(keyName);
  $("console").hidden = $("signout").hidden = true;
  $("signin").hidden = false;
  $("signin-error").textContent = words;
  $("sessions").tBodies[0].replaceChildren();
  $("feed").tBodies[0].replaceChildren();
  $("ask").close();
  $("token").focus();
}

$("signin").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const answer = await ask("session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: $("token").value }),
    });
    key = (await answer.json()).key;
    sessionStorage.setItem(keyName, key);
    $("token").value = "";
    begin();
    $("signout").focus();
  } catch (error) {
    $("signin-error").textContent = error instanceof TypeError ? "the server does not answer" : error.message;
    $("token").select();
  } finally {
    button.disabled = false;
  }
});

$("signout").addEventListener("click", async () => {
  try {
    await ask("session", { method: "DELETE" });
    showSignIn("");
  } catch (error) {
    failed(error, "Not signed out: ");
  }
});

// begin shows the console to whoever is signed in.
function begin() {
  signal = new AbortController();
  $("signin").hidden = true;
  $("signin-error").textContent = $("trouble").textContent = "";
  $("console").hidden = $("signout").hidden = false;
  every(5, showHistory);
  every(15, showStatus);
  loadSessions();
  watch();
}

// every does something now, and again so many seconds after it is done, while
// somebody is signed in and looks.
async function every(seconds, work) {
  const mine = signal.signal;
  while (!mine.aborted) {
    if (!document.hidden) {
      try {
        await work(mine);
        $("trouble").textContent = "";
      } catch (error) {
        if (!mine.aborted) failed(error);
      }
    }
    await new Promise((done) => setTimeout(done, seconds * 1000));
  }
}

// Health and decisions

const time = (unix) => new Date(unix * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

async function showStatus(mine) {
  const s = await (await api("status", { signal: mine })).json();
  const health = (of, failing) => {
    if (of.state === "unused") return ["not used by this server"];
    const took = el("small", { textContent: of.took < 0.0001 ? "in less than 0.1 ms" : `in ${(of.took * 1000).toFixed(of.took < 0.01 ? 1 : 0)} ms` });
    return of.state === "well"
      ? [el("span", { className: "good", textContent: "answers" }), took]
      : [el("span", { className: "bad", textContent: failing }), el("small", { textContent: "the server's log says why" })];
  };
  $("service").replaceChildren(s.service, el("small", { textContent: `${s.version}, since ${time(s.started)}` }));
  $("store").replaceChildren(`${s.store.kind}: `, ...health(s.store, "does not answer"));
  $("tpm").replaceChildren(...health(s.tpm, "fails"));
  $("seen-note").textContent = `Last seen: when this server admitted the session, to five seconds, since it started on ${time(s.started)}. ` +
    "Before that, and at other servers, nobody kept it; a server with very many sessions forgets some.";
}

const nameOf = (s) => s.result.replaceAll("-", " ") + (s.reason ? `: ${s.reason}` : "");
const perSecond = (n) => (n === 0 ? "0" : n < 10 ? n.toFixed(1) : Math.round(n).toLocaleString());

async function showHistory(mine) {
  const h = await (await api("history", { signal: mine })).json();
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const all = h.series.map((s) => ({ ...s, name: nameOf(s), recent: sum(s.counts) }));
  const admitted = all.filter((s) => s.result === "admitted");
  const others = all.filter((s) => s.result !== "admitted").sort((a, b) => b.recent - a.recent || b.total - a.total || a.name.localeCompare(b.name));
  if (admitted.length === 0) admitted.push({ name: "admitted", counts: [], recent: 0, total: 0 });
  const ordered = [...admitted, ...others];
  // Those that are drawn keep their place while the others change.
  const drawn = ordered.filter((s) => s.result !== "bound" && s.result !== "rebound" && s.result !== "revoked").slice(0, lines);
  const n = 1 + Math.max(0, ...ordered.map((s) => s.counts.length)); // before the first span there was nothing
  const times = Array.from({ length: n }, (_, i) => h.until - (n - 1 - i) * h.span);
  const filled = (s) => [...Array(n - s.counts.length).fill(0), ...s.counts].map((c) => c / h.span);
  draw($("chart"), drawn.map((s) => s.name), times, drawn.map(filled));
  $("counts").replaceChildren(...ordered.map((s) => {
    const at = drawn.indexOf(s);
    return el("tr", {},
      el("th", { scope: "row" }, ...(at >= 0 ? [el("span", { className: `swatch s${at}` })] : []), s.name),
      el("td", { className: "number", textContent: perSecond((s.counts.at(-1) ?? 0) / h.span) }),
      el("td", { className: "number", textContent: s.recent.toLocaleString() }),
      el("td", { className: "number", textContent: s.total.toLocaleString() }));
  }));
}

// Sessions

let sessions = [];
let cut = false; // there are more
let filter = {};
let page = 0;
let sort = { by: "seen", down: true };
let loading = null;

const levels = ["none", "software", "browser", "hardware", "hardware-attested"];
const orders = {
  user: (a, b) => a.user.localeCompare(b.user),
  level: (a, b) => levels.indexOf(a.level) - levels.indexOf(b.level),
  key: (a, b) => (a.key ?? "").localeCompare(b.key ?? ""),
  created: (a, b) => a.created - b.created,
  seen: (a, b) => (a.seen ?? 0) - (b.seen ?? 0) || a.created - b.created,
};

async function loadSessions() {
  loading?.abort();
  const mine = (loading = new AbortController());
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== ""));
  $("summary").textContent = "Asking the server …";
  const found = [];
  let more = false;
  try {
    const stop = AbortSignal.any([mine.signal, signal.signal]);
    for await (const s of jsonLines(await api(`sessions?${query}`, { signal: stop }))) {
      if (found.length === most) {
        more = true;
        break;
      }
      found.push(s);
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      $("summary").textContent = "";
      failed(error, "No sessions: ", "summary");
    }
    return;
  }
  [sessions, cut, page] = [found, more, 0];
  $("users").replaceChildren(...[...new Set(found.map((s) => s.user))].sort().slice(0, 200).map((value) => el("option", { value })));
  showSessions();
}

function ago(unix) {
  if (!unix) return "not yet";
  const s = Math.max(0, Math.round(Date.now() / 1000 - unix));
  if (s < 10) return "just now";
  if (s < 120) return `${s} s ago`;
  if (s < 7200) return `${Math.round(s / 60)} min ago`;
  return time(unix);
}

function showSessions() {
  const order = orders[sort.by];
  sessions.sort((a, b) => (sort.down ? -order(a, b) : order(a, b)) || a.session.localeCompare(b.session));
  const pages = Math.max(1, Math.ceil(sessions.length / perPage));
  page = Math.min(page, pages - 1);
  const held = document.activeElement; // which may be gone, or of no use, when this is done
  $("sessions").tBodies[0].replaceChildren(...sessions.slice(page * perPage, (page + 1) * perPage).map((s) => {
    const name = s.user || "no name";
    const revoke = el("button", { type: "button", className: "danger", textContent: "Revoke", onclick: () => revokeOne(s) });
    revoke.setAttribute("aria-label", `Revoke session ${s.session.slice(0, 12)} of ${name}`);
    return el("tr", { role: "row" },
      el("td", { role: "cell", data: "User" }, s.user
        ? el("button", { type: "button", className: "link", textContent: s.user, title: `Show all of ${s.user}`, onclick: () => show({ user: s.user }) })
        : el("span", { className: "quiet", textContent: name })),
      el("td", { role: "cell", data: "Level", textContent: s.level }),
      el("td", { role: "cell", data: "Device key" }, s.key
        ? el("button", { type: "button", className: "link mono", textContent: s.key.slice(0, 12), title: `${s.key}: show its sessions`, onclick: () => show({ key: s.key }) })
        : el("span", { className: "quiet", textContent: "none" })),
      el("td", { role: "cell", data: "Session", className: "mono", textContent: s.session.slice(0, 12), title: s.session }),
      el("td", { role: "cell", data: "Logged in", textContent: time(s.created) }),
      el("td", { role: "cell", data: "Last seen", textContent: ago(s.seen) }),
      el("td", { role: "cell", data: "Client proves by", textContent: s.via === undefined ? "–" : s.via === "none" ? "nothing" : s.via }),
      el("td", { role: "cell", data: "Revoke" }, revoke));
  }));
  const chosen = Object.values(filter).some((value) => value !== "");
  $("summary").textContent = sessions.length === 0
    ? (chosen ? "No live session is like that." : "There are no live sessions.")
    : `${cut ? `The first ${most.toLocaleString()} that the server found; there are more: choose a user, a level or a key.` : `${sessions.length.toLocaleString()} live ${sessions.length === 1 ? "session" : "sessions"}`}${chosen && !cut ? " like that" : ""}${cut ? "" : "."}`;
  $("page").textContent = `Page ${page + 1} of ${pages}`;
  $("before").disabled = page === 0;
  $("after").disabled = page === pages - 1;
  const all = $("revoke-all");
  all.hidden = !(filter.user || filter.key) || sessions.length === 0;
  all.textContent = `Revoke all ${filter.user ? `of ${filter.user}` : "with this device key"}${filter.level ? ` at level ${filter.level}` : ""}`;
  for (const th of $("sessions").tHead.querySelectorAll("[data-sort]")) {
    if (th.dataset.sort === sort.by) th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  if (held !== document.activeElement || held.disabled) $("summary").focus({ preventScroll: true });
}

// show chooses sessions.
function show(wanted) {
  filter = wanted;
  const form = $("filters");
  for (const name of ["user", "level", "key"]) form.elements[name].value = wanted[name] ?? "";
  loadSessions();
}

$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.elements;
  show({ user: form.user.value.trim(), level: form.level.value, key: form.key.value.trim() });
});
$("clear").addEventListener("click", () => show({}));
$("before").addEventListener("click", () => { page--; showSessions(); });
$("after").addEventListener("click", () => { page++; showSessions(); });
$("sessions").tHead.addEventListener("click", (event) => {
  const by = event.target.closest("th")?.dataset.sort;
  if (by === undefined) return;
  sort = { by, down: sort.by === by ? !sort.down : by === "seen" || by === "created" };
  page = 0;
  showSessions();
});

// Revoking

// confirmed asks, and returns whether the answer was yes.
function confirmed(title, words, yes) {
  $("ask-title").textContent = title;
  $("ask-words").textContent = words;
  $("ask-yes").textContent = yes;
  const dialog = $("ask");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

async function revoke(path, told) {
  $("unrevoked").textContent = "";
  try {
    const { revoked } = await (await api(path, { method: "DELETE" })).json();
    await loadSessions();
    $("summary").textContent = `${told(revoked)} ${$("summary").textContent}`;
    $("summary").focus(); // the button that had it is gone
  } catch (error) {
    failed(error, "Not revoked: ", "unrevoked");
  }
}

async function revokeOne(s) {
  if (await confirmed("Revoke this session?", `Session ${s.session.slice(0, 12)} of ${s.user || "somebody without a name"}, level ${s.level}, is over from its next request on, on every server. This cannot be undone: its user logs in again.`, "Revoke it")) {
    await revoke(`sessions/${encodeURIComponent(s.session)}`, () => "Revoked.");
  }
}

$("revoke-all").addEventListener("click", async () => {
  const whose = $("revoke-all").textContent.replace("Revoke all ", "");
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value));
  if (await confirmed(`Revoke all ${whose}?`, `All live sessions ${whose}, also those that are not listed here, are over from their next requests on, on every server. This cannot be undone.`, "Revoke all")) {
    await revoke(`sessions?${query}`, (n) => `Revoked ${n.toLocaleString()}.`);
  }
});

// As it happens

let waiting = []; // newest last
let lost = 0;
let paused = false;

async function watch() {
  const mine = signal.signal;
  while (!mine.aborted) {
    try {
      const answer = await api("decisions?admitted=no", { signal: mine });
      $("feed-state").textContent = "Watching.";
      for await (const d of jsonLines(answer)) {
        lost += d.lost ?? 0;
        waiting.push(d);
        if (waiting.length > feedRows) waiting.shift();
      }
      $("feed-state").textContent = "The server ended. Trying again.";
    } catch (error) {
      if (mine.aborted) return;
      if (error instanceof SignedOut) return failed(error);
      $("feed-state").textContent = `Not watching: ${error instanceof TypeError ? "the server does not answer" : error.message}. Trying again.`;
    }
    await new Promise((done) => setTimeout(done, 5000));
  }
}

// What falls is shown twice a second, however much it is.
setInterval(() => {
  if (paused || waiting.length === 0) return;
  const body = $("feed").tBodies[0];
  const cell = (label, text, more = {}) => el("td", { role: "cell", data: label, textContent: text || "–", ...more });
  body.prepend(...waiting.reverse().map((d) => el("tr", { role: "row" },
    cell("Time", new Date(d.time).toLocaleTimeString()),
    cell("Decision", nameOf(d)),
    cell("Request", d.method ? `${d.method} ${d.path ?? ""}` : "", { className: "mono" }),
    cell("User", d.user || d.client),
    cell("Session", d.session?.slice(0, 12), { className: "mono", title: d.session ?? "" }),
    cell("Why", d.why))));
  while (body.rows.length > feedRows) body.lastChild.remove();
  waiting = [];
  $("feed-state").textContent = lost > 0 ? `Watching. ${lost.toLocaleString()} fell faster than they could be sent here.` : "Watching.";
}, 500);

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("feed-state").textContent = paused ? `Paused. The newest ${feedRows} are kept for later.` : "Watching.";
});

if (key === "") showSignIn();
else begin();
