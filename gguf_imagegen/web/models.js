// The catalog: what each model needs, what is here; it is downloaded, loaded and deleted from here.

import { call } from "./api.js";
import { $, ask, button, bytes, h, needWords, say } from "./dom.js";
import * as pulls from "./pulls.js";

const STATES = {
  loaded: "In memory", loading: "Loading", ready: "On this machine", absent: "Not downloaded", pulling: "Downloading",
  unsupported: "Not supported",
};
const CAN = {
  "text-to-image": "text to image", "image-to-image": "image to image", inpainting: "inpainting", "reference-edit": "edits by instruction",
};
const SECTIONS = ["In memory", "On this machine", "Fits", "Does not fit", "Not supported"];
const ORDERS = {
  "": () => 0,
  name: (one, other) => one.id.localeCompare(other.id),
  size: (one, other) => sizeOf(one.meta) - sizeOf(other.meta),
};
const FEW = 8; // steps; a model that needs no more is fast
const AGAIN = [300, 1000, 2000, 4000, 8000]; // ms after a wish to load or unload, when its effect is looked for
let models = null;
let manages = true; // whether the key is an administrator's
let changed = () => {};
const cards = new Map(); // id -> {element, shown, bar}

export function start(refresh) {
  changed = refresh;
  $("models-find").oninput = draw;
  $("models-sort").onchange = draw;
  $("models-here").onchange = draw;
  pulls.start(drawPull, (id) => { draw(); if (!pulls.of(id)) changed(); });
}

/** New from the server. */
export function offer(list, admin) {
  models = list;
  manages = admin;
  $("models-rights").hidden = admin;
  pulls.offer(list, admin);
  draw();
}

/** The catalog could not be read. */
export function fail(message) {
  if (!models) $("models-hint").replaceChildren(message, " ", button("Try again", changed, { class: "small" }));
}

function draw() {
  if (!models) return;
  const words = $("models-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = models.filter(({ id, meta }) => {
    const tasks = meta.capabilities.map((each) => CAN[each] || each);
    const text = [id, meta.description, meta.family, ...meta.aliases, ...tasks].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && (!$("models-here").checked || isHere(meta));
  }).sort(ORDERS[$("models-sort").value]);
  const wanted = SECTIONS.flatMap((name) => section(name, found.filter(({ meta }) => sectionOf(meta) === name)));
  const there = [...$("models").children];
  if (wanted.length !== there.length || wanted.some((each, index) => each !== there[index])) replaceKeepingFocus(wanted);
  if (found.length) say($("models-hint"), `${found.length} of ${models.length} models`);
  else $("models-hint").replaceChildren("No match. ", button("Show all", showAll, { class: "small" }));
}

function showAll() {
  [$("models-find").value, $("models-here").checked] = ["", false];
  draw();
  $("models-find").focus();
}

const titles = Object.fromEntries(SECTIONS.map((name) => [name, h("h3", {}, name)]));
const section = (name, found) => (found.length ? [titles[name], ...found.map(card)] : []);

function sectionOf(meta) {
  if (meta.state === "unsupported") return "Not supported";
  if (meta.state === "loaded" || meta.state === "loading") return "In memory";
  if (isHere(meta)) return "On this machine";
  return fits(meta) ? "Fits" : "Does not fit";
}

const isHere = (meta) => ["loaded", "loading", "ready", "pulling"].includes(meta.state) || meta.quants.some((quant) => quant.on_disk);
const fits = (meta) => meta.memory?.fits !== false && meta.quants.some((quant) => quant.fits !== false);
const sizeOf = (meta) => meta.download_bytes || meta.size_on_disk || 0;

function replaceKeepingFocus(elements) {
  const focused = document.activeElement;
  $("models").replaceChildren(...elements);
  if (focused?.isConnected && focused !== document.activeElement) focused.focus();
}

/** A model's card, made anew only if something about it is new; the figures of a download change in their place. */
function card({ id, meta }) {
  const lasting = (key, value) => (key === "free" || key === "usable" ? undefined : value);
  const shown = JSON.stringify([manages, meta, Boolean(pulls.of(id)), pulls.fault(id)], lasting);
  const known = cards.get(id);
  if (known?.shown !== shown) {
    const made = { ...makeCard(id, meta), shown };
    cards.set(id, made);
    if (known) takePlace(made.element, known.element);
  }
  drawPull(id);
  drawRoom(id, meta);
  return cards.get(id).element;
}

/** With what was chosen, what was unfolded and the focus. */
function takePlace(element, known) {
  const focused = known.contains(document.activeElement);
  const { act } = document.activeElement.dataset;
  const choice = known.querySelector("select")?.value;
  const again = [...element.querySelectorAll("option")].find((option) => option.value === choice);
  if (again) again.selected = true;
  element.querySelector("details").open = known.querySelector("details").open;
  known.replaceWith(element);
  if (focused) [`[data-act="${act}"]`, "button, select", "h4"].map((each) => element.querySelector(each)).find(Boolean).focus();
}

function makeCard(id, meta) {
  const room = h("p", {});
  const bar = pulls.of(id) ? pullBar(id) : null;
  const state = bar ? "pulling" : meta.state;
  const fault = pulls.fault(id) ?? meta.error?.message ?? (bar ? null : meta.pull_error?.message);
  const element = h("article", { class: "model", "data-state": state, "data-model": id, "aria-label": id },
    h("div", { class: "bar" }, h("h4", { tabindex: -1 }, id), h("span", { class: "badge" }, STATES[state] || state)),
    meta.description ? h("p", {}, meta.description) : null,
    h("ul", { class: "tags", "aria-label": "Tags" }, ...tags(meta).map((each) => h("li", {}, each))),
    meta.unsupported ? h("p", { class: "warning" }, meta.unsupported) : null,
    meta.state === "absent" && !meta.pullable ? h("p", { class: "hint" }, "Cannot be downloaded: put its files into the models folder.") : null,
    meta.gated ? h("p", { class: "warning" }, "Accept its licence first: follow the link in Details, accept, and start the server with HF_TOKEN set.") : null,
    fault ? h("p", { class: "error", role: "alert" }, fault) : null,
    bar?.element,
    h("details", {}, h("summary", {}, "Details", h("span", { class: "unseen" }, ` of ${id}`)), room,
      h("p", { class: "hint links" }, `Licence ${meta.licence || "unknown"}`, ...meta.links.map(link))),
    h("div", { class: "row" }, ...actions(id, meta)));
  return { element, bar, room };
}

/** Size, memory, speed and tasks, in a word each. */
function tags(meta) {
  const size = sizeOf(meta);
  return [
    size ? bytes(size) : null, meta.memory ? `${bytes(meta.memory.needs)} memory` : null,
    meta.defaults.steps <= FEW ? `fast, ${meta.defaults.steps} steps` : `${meta.defaults.steps} steps`,
    ...meta.capabilities.map((each) => CAN[each] || each),
  ].filter(Boolean);
}

/** What the chosen quantisation needs, of memory and of the network; `meta` tells of the best one. */
function drawRoom(id, meta) {
  const { element, room } = cards.get(id);
  const select = element.querySelector("select");
  if (select) select.onchange = () => drawRoom(id, meta);
  const name = select && select.value !== id ? select.value : meta.best;
  const { fits: fitting, download_bytes: size, state } = meta.quants.find((quant) => quant.name === name) ?? meta;
  const memory = name === meta.best ? meta.memory : null;
  const begun = state === "partial" && !pulls.of(id);
  room.className = (memory ?? { fits: fitting }).fits === false ? "warning" : "hint";
  const unknown = fitting === false ? "Does not fit into memory." : "";
  say(room, [memory ? `${memory.fits ? "Fits" : "Does not fit"}: ${needWords(memory)}.` : unknown, meta.pullable && size ? `Download: ${bytes(size)}.` : "",
    begun ? "Partly downloaded: Download resumes." : ""].filter(Boolean).join(" "));
}

const link = (url) => h("a", { href: url, target: "_blank", rel: "noreferrer noopener" }, new URL(url).pathname.slice(1));

function pullBar(id) {
  const progress = h("progress", { max: 1, value: 0, "aria-label": `Downloading ${id}` });
  const words = h("span", { class: "hint" });
  const cancel = button("Cancel", () => act(id, () => pulls.cancel(id)), { class: "small", "data-act": "cancel", "aria-label": `Cancel the download of ${id}` });
  return { element: h("div", { class: "pull" }, progress, words, cancel), progress, words };
}

function drawPull(id) {
  const pulling = pulls.of(id);
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
  if (meta.pullable && !pulls.of(id)) buttons.push(...pullActions(id, meta));
  if (meta.state === "ready" && meta.pullable) {
    const really = () => ask(`Delete ${id}?`, "Its files are deleted from this machine. They can be downloaded again.", "Delete");
    buttons.push(of("Delete", id, async () => { if (await really()) act(id, () => call("DELETE", `${path}?files=true`)); }, { class: "danger" }));
  }
  return buttons;
}

const of = (label, id, onclick, attributes = {}) =>
  button(label, onclick, { "data-act": label.toLowerCase().split(" ")[0], "aria-label": `${label} ${id}`, ...attributes });

function pullActions(id, meta) {
  const quants = meta.quants.filter((quant) => quant.quant);
  const missing = meta.quants.filter((quant) => !quant.on_disk);
  if (!missing.length) return [];
  const best = missing.find((quant) => quant.name === meta.best); // else one that is here, and an ID alone would mean it
  const choice = quants.length > 1
    ? h("select", { "aria-label": `Quantization of ${id}`, "data-act": "quant" }, best ? h("option", { value: id }, `${best.fits === false ? "Smallest" : "Best fit"}: ${best.quant}`) : null,
      ...quants.map((quant) => h("option", { value: quant.name, selected: !best && quant === missing[0] }, quantWords(quant)))) : null;
  const chosen = () => (choice ? choice.value : id);
  if (fits(meta)) return [choice, of("Download", id, () => pulls.pull(id, chosen()))];
  const anyway = () => ask(`Download ${id}?`, "It does not fit into this machine's memory, so it will probably not load.", "Download");
  return [choice, of("Download anyway", id, async () => { if (await anyway()) pulls.pull(id, chosen()); })];
}

function quantWords({ quant, bytes: size, fits: fitting, on_disk: here }) {
  return [quant, size ? bytes(size) : "", here ? "on this machine" : fitting === false ? "does not fit" : ""].filter(Boolean).join(" · ");
}

async function act(id, what) {
  pulls.forgive(id);
  try {
    await what();
  } catch (error) {
    pulls.blame(id, error);
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
    if (!model || pulls.fault(id) || reached(model.meta)) return;
    await new Promise((resolve) => setTimeout(resolve, time));
    await changed();
  }
}
