// What the next picture costs, beside Generate: seconds and memory, and a setting that fits if this one does not.

import { call } from "./api.js";
import { $, announce, button, bytes, say, seconds } from "./dom.js";
import * as jobs from "./jobs.js";

const PAUSE = 400; // ms without a change before the server is asked
const MOST = 2e6; // characters of pictures that are sent for this
let form = {}; // {request(), fault(), take(cheaper)}
let timer = null;
let asking = null; // AbortController of the question under way
let asked = ""; // what the answer shown is about

/** Returns what to call when the form may have changed. */
export function start(wishes) {
  form = wishes;
  jobs.listen((job, event) => { if (event.type === "loaded" || event.type === "ended") soon({ again: true }); });
  soon();
  return soon;
}

function soon({ again = false } = {}) {
  if (again) asked = "";
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE);
}

async function ask() {
  const found = form.fault() ? null : question();
  const about = JSON.stringify(found);
  if (about === asked) return;
  asking?.abort();
  asked = about;
  if (!found) return void show(null);
  asking = new AbortController();
  try {
    show(await call("POST", found.path, found.body, {}, asking.signal));
  } catch (error) {
    if (error.name !== "AbortError") refused(error);
  }
}

/** The request of the form, but for its words, which cost nothing. */
function question() {
  const { negative_prompt: _, stream_options: __, on_disconnect: ___, ...body } = form.request();
  if (JSON.stringify([body.image, body.mask, body.control]).length > MOST) return null;
  return { path: body.image ? "/v1/images/edits" : "/v1/images/generations", body: { ...body, prompt: "a picture", dry_run: true } };
}

/** The server's words for a request that it would not take; Generate says what else went wrong. */
function refused({ status, message }) {
  const bad = status === 400 && message !== $("create-error").textContent;
  $("cost").hidden = !bad;
  $("cost").classList.toggle("warning", bad);
  say($("cost"), bad ? message : "");
}

function show(answer) {
  $("cost").hidden = !answer;
  if (!answer) return;
  const { seconds: time, load_seconds: load, memory, cheaper } = answer;
  const short = memory && !memory.fits;
  $("cost").classList.toggle("warning", Boolean(short));
  if (short) return void showShort(memory, cheaper);
  const about = time && time < 1 ? "Less than 1 s" : time ? `About ${seconds(time)}` : "";
  say($("cost"), [about, time && load >= 1 ? `${seconds(load)} to load` : "", memory ? `${bytes(memory.needs)} of memory` : ""].filter(Boolean).join(" · "));
}

function showShort({ needs, usable }, cheaper) {
  const words = `Does not fit: needs ${bytes(needs)} of memory, ${bytes(usable)} can be used.`;
  if ($("cost").dataset.short !== words) announce(words);
  $("cost").dataset.short = words;
  const take = cheaper ? button(`Use ${cheaper.size?.replace("x", " × ") ?? cheaper.model}`, () => { form.take(cheaper); $("generate").focus(); }, { class: "small" }) : "";
  $("cost").replaceChildren(`${words} `, take);
}
