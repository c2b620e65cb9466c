// The server as this page sees it: JSON calls, event streams, and the key that some servers want.

import { $ } from "./dom.js";

let key = sessionStorage.getItem("imagegen.key") || "";
let asking = null;

/** What the server said was wrong, or that it did not answer (status 0). */
export class ApiError extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Fetch with the key; asks for one, once for all who wait, when the server wants it. */
async function request(method, path, { body, headers, signal } = {}) {
  for (;;) {
    const sent = key;
    let answer;
    try {
      answer = await fetch(path, {
        method,
        signal,
        headers: {
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
          ...(sent ? { Authorization: `Bearer ${sent}` } : {}),
          ...headers,
        },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. Is it still running?");
    }
    if (answer.status !== 401) return answer;
    if (sent === key) await askForKey(sent ? "That key is not one of this server's." : "");
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
  const message = error.code === "invalid_image" && detail ? detail : error.message;
  return new ApiError(answer.status, message || `The server answered with status ${answer.status}.`, error.code);
}

export async function call(method, path, body, headers) {
  const answer = await request(method, path, { body, headers });
  if (!answer.ok) throw await failure(answer);
  return answer.status === 204 ? null : answer.json();
}

/** The data of each server-sent event; ends with the stream. */
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
    yield null; // a sign of life, also where it was only a comment
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data: "));
      const text = lines.map((line) => line.slice(6)).join("\n");
      if (text && text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

export const imagePath = (name) => `/v1/images/files/${encodeURIComponent(name)}`;

function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-error").textContent = message;
    $("key-value").value = "";
    dialog.oncancel = (event) => event.preventDefault();
    $("key-form").onsubmit = () => {
      key = $("key-value").value.trim();
      sessionStorage.setItem("imagegen.key", key);
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}
