// The thief: a page without an origin. It shares no storage and no memory with the
// page around it, and gets of it what a thief gets: the token, and a request that was
// caught on its way.
"use strict";

const proofs = ["signature", "signature-input", "limpet-delegation", "limpet-challenge", "limpet-session", "content-digest"];

async function attempt(words, url, init) {
  const item = document.createElement("li");
  document.getElementById("tries").append(item);
  let result, in_ = false;
  try {
    const answer = await fetch(url, { ...init, credentials: "omit", cache: "no-store" });
    const body = await answer.json();
    in_ = answer.ok;
    result = in_ ? `${answer.status}: in, as ${body.user ?? "the user"}` : `${answer.status} ${body.reason}`;
  } catch {
    result = "no answer";
  }
  const outcome = document.createElement("strong");
  outcome.textContent = result;
  outcome.className = in_ ? "bad" : "good";
  item.append(`${words}: `, outcome);
  return in_;
}

addEventListener("message", async ({ data, source }) => {
  if (source !== parent || typeof data?.token !== "string") return;
  const mood = document.getElementById("mood");
  document.getElementById("tries").replaceChildren();
  mood.textContent = "has your token.";
  const authorization = { Authorization: `Bearer ${data.token}` };
  const me = new URL("/authenticated", data.server).href;
  const caught = data.caught;
  let wins = Number(await attempt("With the token", me, { headers: authorization }));
  if (caught) {
    const stolen = Object.fromEntries(caught.headers.filter(([name]) => proofs.includes(name)));
    if (Object.keys(stolen).length > 0) {
      const init = { method: caught.method, headers: { ...authorization, ...stolen }, body: caught.body };
      wins += await attempt("With your last request, sent again", caught.url, init);
      wins += await attempt("With its proof, on another request", new URL("/echo/transfer?to=thief", data.server).href, { ...init, method: "POST", body: "everything" });
    }
  }
  mood.textContent = wins > 0 ? "is in your session." : "has your token, and it is worth nothing.";
  parent.postMessage({ wins }, data.server);
});
