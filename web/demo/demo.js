// The demo page: a login, calls with their proofs, and a thief.

const $ = (id) => document.getElementById(id);

// What goes over the wire is seen by standing between the SDK and the browser, so
// this comes before the SDK is loaded.
const onTheWire = globalThis.fetch;
let caught = null; // the last call
globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  const body = request.method === "GET" ? undefined : await request.clone().text();
  caught = { method: request.method, url: request.url, headers: [...request.headers], body };
  return onTheWire(request);
};
const limpet = await import("/demo/limpet.js");
globalThis.fetch = onTheWire;

const tokenName = "limpet-demo-token";
let token = sessionStorage.getItem(tokenName);

const bearer = () => ({ Authorization: `Bearer ${token}` });

// ask makes a request with one of the SDK's functions, and returns its JSON; it
// throws with words for people.
async function ask(by, path, init) {
  let answer;
  try {
    answer = await by(path, { cache: "no-store", ...init });
  } catch (error) {
    throw new Error(error instanceof TypeError ? "the server does not answer" : String(error));
  }
  const body = await answer.json().catch(() => ({ message: `the server answers ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(body.message), { status: answer.status, reason: body.reason });
  return body;
}

const post = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// What browsers say of passkeys is not for people.
const words = { NotAllowedError: "No passkey was chosen.", InvalidStateError: "There is a passkey of yours already." };

// does runs what a button is for: once at a time, and says how it went.
function does(element, event, said, work) {
  element.addEventListener(event, async (e) => {
    e.preventDefault();
    if (element.ariaBusy === "true") return;
    element.ariaBusy = "true";
    $(said).className = "said";
    $(said).textContent = "…";
    try {
      $(said).textContent = (await work()) ?? "";
    } catch (error) {
      $(said).className = "said bad";
      $(said).textContent = words[error.name] ?? error.message;
      if (error.status === 401 && error.reason === "session_ended") forget();
    } finally {
      element.ariaBusy = "false";
    }
  });
}

// Logging in

// How a login is sent: with a new device key, or as everywhere else.
const loginBy = (...args) => ($("keyed").checked ? limpet.login(...args) : onTheWire(...args));

function credentials() {
  if (!$("stranger").querySelector("form").reportValidity()) throw new Error("A user name and a password are needed.");
  return post({ username: $("name").value, password: $("password").value });
}

async function enter(answer) {
  token = answer.token;
  sessionStorage.setItem(tokenName, token);
  $("password").value = "";
  await show();
  $("user").focus();
}

does($("stranger").querySelector("form"), "submit", "login-said", async () => {
  await enter(await ask(loginBy, "/login", credentials()));
});

does($("register"), "click", "login-said", async () => {
  const init = credentials();
  await ask(onTheWire, "/register", init);
  await enter(await ask(loginBy, "/login", init));
  return "Registered.";
});

function needPasskeys() {
  if (!globalThis.PublicKeyCredential?.parseRequestOptionsFromJSON) throw new Error("This browser knows no passkeys here.");
}

does($("passkey-login"), "click", "login-said", async () => {
  needPasskeys();
  const options = await ask(onTheWire, "/login/passkey/options", { method: "POST" });
  const signed = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options.publicKey) });
  await enter(await ask(loginBy, "/login/passkey", post(signed.toJSON())));
});

does($("make-passkey"), "click", "login-said", async () => {
  needPasskeys();
  const options = await ask(limpet.fetch, "/passkey/options", { method: "POST", headers: bearer() });
  const made = await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options.publicKey) });
  const init = post(made.toJSON());
  await ask(limpet.fetch, "/passkey", { ...init, headers: { ...init.headers, ...bearer() } });
  return "The passkey is kept. Log out, and log in with it.";
});

does($("logout"), "click", "login-said", async () => {
  await ask(limpet.logout, "/logout", { method: "POST", headers: bearer() });
  forget();
  $("name").focus();
  return "Logged out.";
});

function forget() {
  token = null;
  sessionStorage.removeItem(tokenName);
  $("stranger").hidden = false;
  $("user").hidden = true;
  $("call").hidden = true;
  $("call-said").textContent = "Log in first.";
  for (const id of ["get", "post", "copy", "steal"]) $(id).disabled = true;
  $("token").value = $("curl").textContent = "";
}

// show shows whose session this is.
async function show() {
  const me = await ask(limpet.fetch, "/authenticated", { headers: bearer() });
  const state = await limpet.state();
  const keyed = me.level !== "none";
  $("who").textContent = me.user;
  $("level").textContent = keyed
    ? `${me.level}: the key is in this browser's profile, and cannot be exported`
    : "none: whoever has the token has the session";
  $("key").textContent = !keyed ? "none" : state.session === me.session ? state.key : "lost: this browser has another";
  $("session").textContent = me.session;
  $("stranger").hidden = true;
  $("user").hidden = false;
  for (const id of ["get", "post", "copy", "steal"]) $(id).disabled = false;
  $("token").value = token;
  $("curl").textContent = `curl -H 'Authorization: Bearer ${token}' ${location.origin}/authenticated`;
  $("call-said").textContent = "";
}

// Calling

const ours = /^(signature|signature-input|limpet-.*|content-digest)$/;

async function call(path, init = {}) {
  let answer, body;
  try {
    answer = await limpet.fetch(path, { cache: "no-store", ...init, headers: { ...init.headers, ...bearer() } });
    body = await answer.text();
  } catch {
    throw new Error("the server does not answer");
  }
  const url = new URL(caught.url);
  $("line").textContent = `${caught.method} ${url.pathname}${url.search} HTTP\nHost: ${url.host}\nAuthorization: Bearer ${token.slice(0, 6)}…${caught.body ? `\n\n${caught.body}` : ""}`;
  const proof = caught.headers.filter(([name]) => ours.test(name));
  $("headers").tBodies[0].replaceChildren(...(proof.length > 0 ? proof : [["none", "this session has no key"]]).map(([name, value]) => {
    const row = document.createElement("tr");
    const [a, b] = [document.createElement("td"), document.createElement("td")];
    a.textContent = name.replace(/(^|-)[a-z]/g, (s) => s.toUpperCase());
    b.textContent = value;
    b.className = "mono";
    row.append(a, b);
    return row;
  }));
  $("answer").textContent = `${answer.status} ${body.trim()}`;
  $("call").hidden = false;
  if (answer.status === 401 && body.includes("session_ended")) {
    forget();
    throw new Error("The session is over: log in again.");
  }
  return answer.ok ? `Admitted${proof.length > 0 ? ", with a proof" : ", without a proof"}.` : `Refused: ${answer.status}.`;
}

does($("get"), "click", "call-said", () => call("/authenticated"));
does($("post"), "click", "call-said", () => call("/echo", { method: "POST", body: $("text").value }));

// The thief

does($("copy"), "click", "thief-said", async () => {
  try {
    await navigator.clipboard.writeText(token);
  } catch {
    $("token").select();
    return "Marked: copy it with the keyboard.";
  }
  return "Copied.";
});

does($("steal"), "click", "thief-said", async () => {
  if (!caught || new URL(caught.url).pathname.startsWith("/.well-known/")) await call("/authenticated");
  const told = new Promise((done) => {
    const hear = ({ source, data }) => {
      if (source !== $("thief").contentWindow) return;
      removeEventListener("message", hear);
      done(data.wins);
    };
    addEventListener("message", hear);
  });
  // A page without an origin can be named by nothing else than "*".
  $("thief").contentWindow.postMessage({ token, server: location.origin, caught }, "*");
  const wins = await told;
  return wins > 0 ? "The thief is in your session. Log in again, with a key." : "Each try was refused. You are still in: call the API.";
});

const { reason } = await limpet.state();
if (reason) {
  $("unable").textContent = `This browser can keep no key here (${reason}): sessions are as everywhere else. Open this page by https, or as http://localhost.`;
  $("unable").hidden = false;
  $("keyed").checked = false;
}
if (token) {
  await show().catch((error) => {
    if (error.status === 401) forget();
    else {
      $("login-said").className = "said bad";
      $("login-said").textContent = error.message;
    }
  });
}
