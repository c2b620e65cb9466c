// The server as this page sees it: JSON calls, event streams, and the key that some servers want.

import { $ } from "./dom.js";
import { kept, keptHere } from "./store.js";

const ROOT = new URL(".", location.href).pathname; // where the page is, and with it the API: "/", or below a prefix
let key = keptHere.get("key", "") || kept.get("key", "");
let asking = null;

export const hasKey = () => Boolean(key);

/** What the server said was wrong, or that it did not answer (status 0). */
export class ApiError extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Where a path of the API is. */
export const at = (path) => ROOT + path.replace(/^\//, "");

/** Fetch with the key; asks for one, once for all who wait, when the server wants it. */
async function request(method, path, { body, headers, signal } = {}) {
  for (;;) {
    const sent = key;
    let answer;
    try {
      answer = await fetch(at(path), {
        method,
        signal,
        credentials: "omit", // else the browser would ask for a password of its own, beside our question
        headers: {
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
          ...(sent ? { Authorization: `Bearer ${sent}` } : {}),
          ...headers,
        },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server is not responding. Is it running?");
    }
    if (answer.status !== 401) return answer;
    if (sent === key) await askForKey(sent ? "Wrong key." : "");
  }
}

async function failure(answer) {
  let error = {};
  let detail = "";
  try {
    const content = await answer.json();
    error = content.error || {};
    detail = typeof content.detail === "string" ? content.detail : "";
  } catch { /* no JSON: the status must do */ }
  return new ApiError(answer.status, error.message || detail || `The server answered with status ${answer.status}.`, error.code);
}

export async function call(method, path, body, headers, signal) {
  const answer = await request(method, path, { body, headers, signal });
  if (!answer.ok) throw await failure(answer);
  return answer.status === 204 ? null : answer.json();
}

/** A file of the server, for which the key may be needed. */
export async function blob(path) {
  const answer = await request("GET", path);
  if (!answer.ok) throw await failure(answer);
  return answer.blob();
}

/** The data of each server-sent event, and null for each sign of life; ends with the stream. */
export async function* stream(method, path, { body, signal } = {}) {
  const answer = await request(method, path, { body, signal });
  if (!answer.ok) throw await failure(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    yield null;
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data: "));
      const text = lines.map((line) => line.slice(6)).join("\n");
      if (text && text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

export const imagePath = (name) => `/v1/images/files/${encodeURIComponent(name)}`;
/** Where a picture is to be had; with a `width` a thumbnail that is about so wide. */
export const imageUrl = (name, width) => at(imagePath(name)) + (width ? `?width=${width}` : "");

function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-error").textContent = message;
    $("key-value").value = "";
    $("key-remember").checked = Boolean(kept.get("key", ""));
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => { if (asking) dialog.showModal(); }; // some browsers let one prevent this only once
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = $("key-value").value.trim();
      keepKey($("key-remember").checked);
      asking = null;
      dialog.close();
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

/** For as long as this tab is open, or for ever. */
function keepKey(forEver) {
  const [here, other] = forEver ? [kept, keptHere] : [keptHere, kept];
  here.set("key", key);
  other.forget("key");
}

/** Forget the key and ask again. */
export function forgetKey() {
  keptHere.forget("key");
  kept.forget("key");
  location.reload();
}
