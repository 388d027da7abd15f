"use strict";

// Asks the browser for a passkey, or has it make one, and brings the answer to the
// page's own server (WebAuthn Level 3, sections 5.1.3, 5.1.4). The rest of the page
// works without.

const form = document.querySelector("form");
const alertBox = document.getElementById("alert");

const decode = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const encode = (buffer) => btoa(Array.from(new Uint8Array(buffer), (b) => String.fromCharCode(b)).join(""))
  .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

function say(text) {
  alertBox.textContent = text;
  alertBox.hidden = !text;
}

async function post(path, fields) {
  const answer = await fetch(path, {method: "POST", body: fields, credentials: "same-origin"});
  return answer.json();
}

// What the server sends has its buffers in base64url.
function options(from) {
  const key = from.publicKey;
  key.challenge = decode(key.challenge);
  if (key.user) {
    key.user.id = decode(key.user.id);
  }
  for (const list of [key.excludeCredentials, key.allowCredentials]) {
    for (const one of list || []) {
      one.id = decode(one.id);
    }
  }
  return from;
}

function plain(credential) {
  const from = credential.response;
  const response = {clientDataJSON: encode(from.clientDataJSON)};
  if (from.getPublicKey) {
    response.authenticatorData = encode(from.getAuthenticatorData());
    response.publicKey = encode(from.getPublicKey());
    response.publicKeyAlgorithm = from.getPublicKeyAlgorithm();
    response.transports = from.getTransports();
  } else {
    response.authenticatorData = encode(from.authenticatorData);
    response.signature = encode(from.signature);
    response.userHandle = from.userHandle ? encode(from.userHandle) : "";
  }
  return {rawId: encode(credential.rawId), type: credential.type, response};
}

// The page's words become those of the end.
function end(result) {
  document.title = result.title;
  document.querySelector("h1").textContent = result.title;
  const rest = [];
  for (const text of [result.text, result.code, result.hint]) {
    if (text) {
      const p = document.createElement("p");
      p.textContent = text;
      p.className = text === result.code ? "code" : "";
      rest.push(p);
    }
  }
  const main = document.querySelector("main");
  main.replaceChildren(main.querySelector("h1"), ...rest);
  if (result.onward) {
    location.replace(result.onward);
  }
}

async function run() {
  if (!window.PublicKeyCredential) {
    say("This browser has no passkeys.");
    return;
  }
  const fields = new URLSearchParams(new FormData(form));
  const begun = await post("/sso/passkey", fields);
  if (begun.wrong) {
    say(begun.wrong);
    return;
  }
  if (begun.title) {
    end(begun);
    return;
  }
  let credential;
  try {
    credential = await navigator.credentials[begun.create ? "create" : "get"](options(begun.options));
  } catch (e) {
    say(e.name === "InvalidStateError" ? "This device has a passkey for you here already."
      : "The browser gave no passkey: " + e.message);
    return;
  }
  fields.set("credential", JSON.stringify(plain(credential)));
  end(await post("/sso/passkey/answer", fields));
}

form.addEventListener("submit", (event) => {
  if (!event.submitter || event.submitter.value !== "passkey") {
    return;
  }
  event.preventDefault();
  const buttons = form.querySelectorAll("button");
  buttons.forEach((b) => { b.disabled = true; });
  say("");
  run().catch(() => say("The proxy does not answer. Try again."))
    .finally(() => buttons.forEach((b) => { b.disabled = false; }));
});
