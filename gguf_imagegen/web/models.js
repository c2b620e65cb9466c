// The catalog: what each model needs, what is here, pulling and loading it.

import { ApiError, call, stream } from "./api.js";
import { $, announce, ask, button, bytes, h, needWords, say, seconds, toast } from "./dom.js";

const STATES = {
  loaded: "In memory", loading: "Loading", ready: "On this machine", absent: "Not downloaded", pulling: "Downloading",
  unsupported: "Cannot be run",
};
const CAN = {
  "text-to-image": "text to picture", "image-to-image": "changes pictures", inpainting: "repaints masks",
  "reference-edit": "edits by instruction",
};
const AGAIN = [300, 1000, 2000, 4000, 8000]; // ms after a wish to load or unload, when its effect is looked for
let models = null;
let manages = true; // whether the key is an administrator's
let changed = () => {};
const pulls = new Map(); // id -> {name, done, total, words}
const faults = new Map(); // id -> {message, silence}: what went wrong with it last, and whether that is over when the server answers
const broken = new Map(); // id -> name of the pull whose connection broke
const cards = new Map(); // id -> {element, shown, bar}

export function start(refresh) {
  changed = refresh;
  $("models-find").oninput = draw;
  $("models-here").onchange = draw;
}

/** New from the server. */
export function offer(list, admin) {
  models = list;
  manages = admin;
  $("models-rights").hidden = admin;
  for (const [id, { silence }] of faults) if (silence) faults.delete(id);
  for (const { id, meta } of list) if (broken.has(id)) judge(id, meta);
  draw();
  for (const { id, meta } of list) if (admin && meta.pulling.length && !pulls.has(id)) pull(id, meta.pulling.at(-1));
}

/** Whether a pull whose connection broke has ended with the server; one that goes on is followed again. */
function judge(id, meta) {
  const name = broken.get(id);
  broken.delete(id);
  const came = meta.quants.find((quant) => quant.name === name)?.on_disk ?? isHere(meta);
  if (!came && !meta.pulling.length) faults.set(id, { message: "The server stopped before the download finished. Pull resumes it." });
}

/** The catalog could not be read. */
export function fail(message) {
  if (!models) say($("models-hint"), message);
}

function draw() {
  if (!models) return;
  const words = $("models-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = models.filter(({ id, meta }) => {
    const text = [id, meta.description, meta.family, ...meta.aliases].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && (!$("models-here").checked || isHere(meta));
  });
  found.sort((one, other) => rank(one.meta) - rank(other.meta));
  const wanted = found.map(card);
  const there = [...$("models").children];
  if (wanted.length !== there.length || wanted.some((each, index) => each !== there[index])) replaceKeepingFocus(wanted);
  say($("models-hint"), found.length ? `${found.length} of ${models.length} models` : "No match.");
}

const isHere = (meta) => ["loaded", "loading", "ready", "pulling"].includes(meta.state) || meta.quants.some((quant) => quant.on_disk);
const rank = (meta) => (meta.state === "loaded" ? 0 : isHere(meta) ? 1 : meta.state === "absent" ? 2 : 3);

function replaceKeepingFocus(elements) {
  const focused = document.activeElement;
  $("models").replaceChildren(...elements);
  if (focused?.isConnected && focused !== document.activeElement) focused.focus();
}

/** A model's card, made anew only if something about it is new; the figures of a pull change in their place. */
function card({ id, meta }) {
  const lasting = (key, value) => (key === "free" || key === "usable" ? undefined : value);
  const shown = JSON.stringify([manages, meta, pulls.has(id), faults.get(id)?.message], lasting);
  const known = cards.get(id);
  if (known?.shown !== shown) {
    const made = { ...makeCard(id, meta), shown };
    cards.set(id, made);
    if (known) {
      const focused = known.element.contains(document.activeElement);
      const { act } = document.activeElement.dataset;
      const choice = known.element.querySelector("select")?.value;
      const again = [...made.element.querySelectorAll("option")].find((option) => option.value === choice);
      if (again) again.selected = true;
      known.element.replaceWith(made.element);
      if (focused) [`[data-act="${act}"]`, "button, select", "h3"].map((each) => made.element.querySelector(each)).find(Boolean).focus();
    }
  }
  drawPull(id);
  drawRoom(id, meta);
  return cards.get(id).element;
}

function makeCard(id, meta) {
  const room = h("p", {});
  const bar = pulls.has(id) ? pullBar(id) : null;
  const state = bar ? "pulling" : meta.state;
  const fault = faults.get(id)?.message ?? meta.error?.message;
  const element = h("article", { class: "model", "data-state": state, "data-model": id, "aria-label": id },
    h("div", { class: "bar" }, h("h3", { tabindex: -1 }, id), h("span", { class: "badge" }, STATES[state] || state)),
    meta.description ? h("p", {}, meta.description) : null,
    h("p", { class: "hint" }, meta.capabilities.map((each) => CAN[each] || each).join(", ")),
    room,
    h("p", { class: "hint links" }, `Licence ${meta.licence || "unknown"}`, ...meta.links.map(link)),
    meta.unsupported ? h("p", { class: "warning" }, meta.unsupported) : null,
    meta.state === "absent" && !meta.pullable ? h("p", { class: "hint" }, "Cannot be downloaded: put its files into the models folder.") : null,
    meta.gated ? h("p", { class: "warning" }, "Accept its licence first: follow the link, accept, and start the server with HF_TOKEN set.") : null,
    fault ? h("p", { class: "error", role: "alert" }, fault) : null,
    bar?.element,
    h("div", { class: "row" }, ...actions(id, meta)));
  return { element, bar, room };
}

/** What the chosen quantisation needs, of memory and of the line; `meta` tells of the best one. */
function drawRoom(id, meta) {
  const { element, room } = cards.get(id);
  const select = element.querySelector("select");
  if (select) select.onchange = () => drawRoom(id, meta);
  const name = select && select.value !== id ? select.value : meta.best;
  const { fits, download_bytes: size, state } = meta.quants.find((quant) => quant.name === name) ?? meta;
  const memory = name === meta.best ? meta.memory : null;
  const begun = state === "partial" && !pulls.has(id);
  room.className = (memory ?? { fits }).fits === false ? "warning" : "hint";
  const unknown = fits === false ? "Does not fit into memory." : "";
  say(room, [memory ? `${memory.fits ? "Fits" : "Does not fit"}: ${needWords(memory)}.` : unknown, meta.pullable && size ? `To download: ${bytes(size)}.` : "",
    begun ? "Partly downloaded: Pull resumes." : ""].filter(Boolean).join(" "));
}

const link = (url) => h("a", { href: url, target: "_blank", rel: "noreferrer noopener" }, new URL(url).pathname.slice(1));

function pullBar(id) {
  const progress = h("progress", { max: 1, value: 0, "aria-label": `Pulling ${id}` });
  const words = h("span", { class: "hint" });
  const cancel = button("Cancel", () => act(id, () => call("DELETE", `/v1/models/pull/${encodeURIComponent(pulls.get(id).name)}`)),
    { class: "small", "data-act": "cancel", "aria-label": `Cancel the pull of ${id}` });
  return { element: h("div", { class: "pull" }, progress, words, cancel), progress, words };
}

function drawPull(id) {
  const pulling = pulls.get(id);
  const bar = cards.get(id)?.bar;
  if (!pulling || !bar) return;
  if (pulling.total) [bar.progress.max, bar.progress.value] = [pulling.total, pulling.done];
  say(bar.words, pulling.words);
}

function actions(id, meta) {
  const path = `/v1/models/${encodeURIComponent(id)}`;
  const buttons = [];
  if (!manages) return buttons;
  if (meta.state === "ready") buttons.push(of("Load", id, () => wish(id, "load")));
  if (meta.state === "loaded") buttons.push(of("Unload", id, () => wish(id, "unload")));
  if (meta.pullable && !pulls.has(id)) buttons.push(...pullActions(id, meta));
  if (meta.state === "ready" && meta.pullable) {
    const really = () => ask(`Delete ${id}?`, "Its files are deleted from this machine; they can be pulled again.", "Delete");
    buttons.push(of("Delete", id, async () => { if (await really()) act(id, () => call("DELETE", `${path}?files=true`)); }, { class: "danger" }));
  }
  return buttons;
}

const of = (label, id, onclick, attributes = {}) =>
  button(label, onclick, { "data-act": label.toLowerCase(), "aria-label": `${label} ${id}`, ...attributes });

function pullActions(id, meta) {
  const quants = meta.quants.filter((quant) => quant.quant);
  const missing = meta.quants.filter((quant) => !quant.on_disk);
  if (!missing.length) return [];
  const best = missing.find((quant) => quant.name === meta.best); // else one that is here, and an ID alone would mean it
  const choice = quants.length > 1
    ? h("select", { "aria-label": `Quantisation of ${id}`, "data-act": "quant" }, best ? h("option", { value: id }, `${best.fits === false ? "Smallest" : "Best that fits"}: ${best.quant}`) : null,
      ...quants.map((quant) => h("option", { value: quant.name, selected: !best && quant === missing[0] }, quantWords(quant)))) : null;
  return [choice, of("Pull", id, () => pull(id, choice ? choice.value : id), { class: meta.state === "absent" ? "primary" : null })];
}

function quantWords({ quant, bytes: size, fits, on_disk: here }) {
  return [quant, size ? bytes(size) : "", here ? "here" : fits === false ? "does not fit" : ""].filter(Boolean).join(" · ");
}

async function act(id, what) {
  faults.delete(id);
  try {
    await what();
  } catch (error) {
    faults.set(id, { message: error.message, silence: error.status === 0 });
    draw();
  }
  return changed();
}

/** Load or unload; the server does it when no job waits, so the effect is looked for several times. */
async function wish(id, what) {
  await act(id, () => call("POST", `/v1/models/${encodeURIComponent(id)}/${what}`));
  const reached = ({ state, error }) => (what === "load" ? state === "loading" || state === "loaded" || error : state !== "loaded");
  for (const time of AGAIN) {
    const model = models.find((each) => each.id === id);
    if (!model || faults.has(id) || reached(model.meta)) return;
    await new Promise((resolve) => setTimeout(resolve, time));
    await changed();
  }
}

async function pull(id, name) {
  faults.delete(id);
  pulls.set(id, { name, done: 0, total: 0, words: "Contacting the hub…" });
  draw();
  broken.delete(id);
  let last = null;
  try {
    for await (const frame of stream("POST", "/v1/models/pull", { body: { model: name, stream: true } })) {
      if (!frame) continue;
      if (frame.error) throw Object.assign(new Error(frame.error.message), frame.error);
      last = frame;
      pulls.set(id, { ...pulls.get(id), ...progress(frame) });
      drawPull(id);
    }
    if (last?.status !== "succeeded") throw new ApiError(0, "The connection was lost during the download.");
    announce(`${id} is here.`);
    toast(`${id} is here.`);
  } catch (error) {
    const silence = error.status === 0 || error instanceof TypeError;
    if (error.code === "cancelled") toast(`The pull of ${id} was cancelled. The next one resumes it.`);
    else faults.set(id, { message: silence ? "The connection was lost during the download." : error.message, silence });
    if (silence && last) broken.set(id, pulls.get(id).name); // it may go on without us
  }
  pulls.delete(id);
  draw();
  changed();
}

function progress({ model, status, done, total, speed, eta, overall }) {
  const whole = overall ?? { done, total };
  const words = {
    downloading: "", planned: "", running: "", waiting: "Waiting for another pull", verifying: "Checking", rewriting: "Rewriting", ready: "",
  };
  const parts = [
    words[status] ?? status, whole.total ? `${bytes(whole.done)} of ${bytes(whole.total)}` : "Contacting the hub…",
    speed ? `${bytes(speed)}/s` : "", eta ? `${seconds(eta)} left` : "",
  ];
  return { name: model, done: whole.done ?? 0, total: whole.total ?? 0, words: parts.filter(Boolean).join(" · ") };
}
