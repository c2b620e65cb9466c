// The cards of the jobs: a picture each, sharpening as it comes.

import { at, imageUrl } from "./api.js";
import { load } from "./create.js";
import { $, announce, button, h, say, seconds, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { ofJob } from "./settings.js";
import * as sources from "./sources.js";
import { kept, keptHere } from "./store.js";

const PHASES = {
  queued: "Waiting", loading: "Loading the model", conditioning: "Reading the prompt", encoding: "Reading the picture",
  sampling: "Painting", hires: "Painting larger", decoding: "Developing", upscaling: "Enlarging",
};
const TOLD = [75, 50, 25]; // percent that are announced
const QUIET = 3000; // ms after one announcement in which no such percentage follows
const DISMISSED = 100; // jobs to leave out, more than the server tells of
const cards = new Map(); // by the job's id
const changed = new Set(); // cards to draw
let dismissed = keptHere.get("dismissed", []); // ids, the newest last
let open = () => {};
let drawing = null;
let announced = 0; // when

/** `openViewer(job, index)` shows a finished picture. */
export function start(openViewer) {
  open = openViewer;
  jobs.listen((job, event) => {
    if (job) update(job, event);
  });
  $("cancel-all").onclick = () => jobs.active().forEach((job) => stop(job.id));
  $("clear").onclick = () => {
    dismiss([...cards.values()].filter(isSpent));
    $("watch-title").focus();
  };
  $("notify-field").hidden = !("Notification" in window) || !window.isSecureContext;
  $("notify").checked = kept.get("notify", false) && window.Notification?.permission === "granted";
  $("notify").onchange = askToNotify;
}

async function askToNotify() {
  const asked = $("notify").checked;
  const granted = asked && await Notification.requestPermission() === "granted";
  $("notify").checked = granted;
  kept.set("notify", granted);
  if (asked && !granted) toast("The browser does not allow notifications of this page; its site settings can.", "error");
}

async function stop(id) {
  try {
    await jobs.cancel(id);
  } catch (error) {
    if (error.status !== 404) toast(error.message, "error");
  }
}

/** Whether a card shows nothing that is coming or has come. */
const isSpent = ({ job }) => job.over && !job.pictures.some((picture) => picture.name);

function dismiss(gone) {
  dismissed = [...dismissed, ...gone.map(({ job }) => job.id)].slice(-DISMISSED);
  keptHere.set("dismissed", dismissed);
  gone.forEach(({ job }) => removeCard(job));
  overall();
}

/** One card goes; the focus moves on to the next that can. */
function dismissOne(card) {
  const before = [...$("jobs").querySelectorAll(".dismiss:not([hidden])")];
  const place = before.indexOf(card.dismiss);
  dismiss([card]);
  (before[place + 1] ?? before[place - 1] ?? $("watch-title")).focus();
}

function removeCard(job) {
  const card = cards.get(job.id);
  card?.element.remove();
  cards.delete(job.id);
  changed.delete(card);
}

function update(job, event) {
  if (dismissed.includes(job.id)) return;
  if (event.type === "forgotten") return void removeCard(job);
  if (event.type === "ended") finished(job);
  const card = cards.get(job.id) ?? addCard(job);
  tellProgress(card, event);
  changed.add(card);
  drawing ??= setTimeout(drawAll); // several events of one moment are drawn once
}

function drawAll() {
  drawing = null;
  changed.forEach(draw);
  changed.clear();
  overall();
}

function addCard(job) {
  const card = makeCard(job);
  cards.set(job.id, card);
  const next = [...$("jobs").children].find((element) => cards.get(element.dataset.job).job.order < job.order);
  $("jobs").insertBefore(card.element, next ?? null);
  $("jobs-empty").hidden = true;
  return card;
}

function makeCard(job) {
  const text = job.parameters.prompt || (job.operation === "upscale" ? "Enlarged picture" : "Picture without a prompt");
  const cancel = button("Cancel", () => stop(job.id), { class: "small", "aria-label": `Cancel: ${text}` });
  const again = button("Load settings", () => load(ofJob(job), sources.ofJob(job.id)), { class: "small", hidden: true });
  const away = button("Dismiss", () => dismissOne(cards.get(job.id)), { class: "small dismiss", hidden: true, "aria-label": `Dismiss: ${text}` });
  const state = h("p", { class: "state" });
  const error = h("p", { class: "error" });
  const notes = h("ul", { class: "notes" });
  const tiles = job.pictures.map((_, index) => makeTile(job, index));
  const element = h("article", { class: "job", "data-job": job.id, "aria-label": text },
    h("div", { class: "tiles", "data-count": tiles.length }, ...tiles.map((tile) => tile.element)),
    h("div", { class: "bar" }, h("p", { class: "prompt", title: text }, text), cancel, again),
    h("div", { class: "bar" }, state, away), error, notes);
  return { job, element, cancel, again, dismiss: away, state, error, notes, tiles, text, told: 0 };
}

function makeTile(job, index) {
  const { width, height } = job.parameters;
  const image = h("img", { alt: "", width, height });
  const view = h("button", { type: "button", class: "tile", onclick: () => open(job, index) }, image);
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  ring.setAttribute("viewBox", "0 0 36 36");
  ring.innerHTML = '<circle cx="18" cy="18" r="15.9"/><circle class="done" cx="18" cy="18" r="15.9" pathLength="100"/>';
  const percent = h("span", { class: "percent" });
  const progress = h("div", { class: "ring", role: "progressbar", "aria-label": `Picture ${index + 1} of ${job.n}`, "aria-valuemin": 0, "aria-valuemax": 100 }, ring, percent);
  const element = h("div", { class: "picture" }, view, progress);
  return { element, view, image, progress, percent, ring: ring.querySelector(".done"), shown: "" };
}

function draw(card) {
  const { job } = card;
  const focused = document.activeElement === card.cancel;
  card.element.dataset.status = job.status;
  card.cancel.hidden = job.over;
  card.again.hidden = job.status !== "failed" && job.status !== "cancelled";
  card.dismiss.hidden = !isSpent(card);
  say(card.state, stateWords(job));
  say(card.error, job.status === "failed" && job.error ? advice(job.error) : "");
  if (card.notes.childElementCount !== job.warnings.length) {
    card.notes.replaceChildren(...job.warnings.map((text) => h("li", {}, text)));
  }
  job.pictures.forEach((picture, index) => drawTile(card.tiles[index], job, picture, index));
  if (focused && job.over) (card.dismiss.hidden ? card.tiles.find((tile) => !tile.view.disabled)?.view : card.dismiss)?.focus();
}

function drawTile(tile, job, picture, index) {
  const source = picture.name ? imageUrl(picture.name) : picture.preview ? `data:image/png;base64,${picture.preview}` : "";
  if (source && source !== tile.shown) {
    tile.image.src = tile.shown = source;
    if (picture.preview) tile.element.dataset.previews = Number(tile.element.dataset.previews || 0) + 1;
  }
  tile.view.disabled = !picture.name;
  tile.view.setAttribute("aria-label", `${picture.name ? "Open" : "Not finished"}: picture ${index + 1} of ${job.n}`);
  tile.element.dataset.state = picture.name ? "done" : tile.shown ? "preview" : "empty";
  tile.progress.hidden = Boolean(picture.name) || job.over;
  if (tile.progress.hidden) return;
  const done = part(job, picture);
  const waits = job.status === "queued";
  tile.progress.setAttribute("aria-valuenow", Math.round(100 * done));
  tile.progress.setAttribute("aria-valuetext", waits ? `place ${job.position} in the queue` : `${Math.round(100 * done)} %`);
  tile.ring.style.strokeDasharray = `${100 * done} 100`;
  say(tile.percent, waits ? `#${job.position ?? ""}` : `${Math.round(100 * done)}%`);
}

/** How much of one picture is done, 0 to 1. */
function part(job, picture) {
  if (job.loading != null) return job.loading;
  if (["sampling", "hires", "upscaling"].includes(picture.phase)) return picture.steps ? picture.step / picture.steps : 0;
  return picture.phase === "decoding" ? 1 : 0;
}

function stateWords(job) {
  const { width, height } = job.parameters;
  if (job.status === "queued") {
    const wait = job.eta ? ` · done in about ${seconds(job.eta)}` : "";
    return job.position > 1 ? `Waiting, number ${job.position} in the queue${wait}` : `Next in the queue${wait}`;
  }
  if (job.status === "cancelled") return "Cancelled";
  if (job.status === "failed") return "Failed";
  if (job.status === "succeeded") return `${job.model} · ${width} × ${height} · seed ${job.parameters.seed}`;
  if (job.loading != null) return `Loading the model, ${Math.round(100 * job.loading)} %`;
  const index = job.pictures.findIndex((picture) => !picture.name);
  const picture = job.pictures[index] || {};
  const words = [PHASES[picture.phase] || "Starting"];
  if (picture.step && picture.phase !== "decoding") words[0] += `, step ${picture.step} of ${picture.steps}`;
  if (job.n > 1 && index >= 0) words.push(`picture ${index + 1} of ${job.n}`);
  if (job.eta) words.push(`${seconds(job.eta)} left`);
  return words.join(" · ");
}

const ADVICE = {
  worker_crashed: "The server goes on: generate again, and smaller if it happens twice.",
  insufficient_memory: "Choose a smaller size or a smaller model.",
  model_load_failed: "Choose another model, or pull this one again.",
  generation_failed: "Other settings or a smaller size may work.",
};

const advice = (error) => [error.message, ADVICE[error.code]].filter(Boolean).join(" ");

function tell(words) {
  announced = Date.now();
  announce(words);
}

/** The beginning, and now and then how far it is. */
function tellProgress(card, { type }) {
  if (type === "started") tell(`“${card.text}” has begun.`);
  const { job } = card;
  const reached = TOLD.find((percent) => job.progress >= percent) ?? 0;
  if (job.over || job.status !== "running" || reached <= card.told || Date.now() - announced < QUIET) return;
  card.told = reached;
  tell(`“${card.text}”: ${reached} %.`);
}

function finished(job) {
  const prompt = job.parameters.prompt;
  const what = { succeeded: "is finished", failed: "failed", cancelled: "was cancelled" }[job.status];
  tell(`“${prompt}” ${what}. ${job.status === "failed" && job.error ? advice(job.error) : ""}`);
  if (job.status === "succeeded" && $("notify").checked && document.hidden) notify(job, prompt);
}

function notify(job, body) {
  try {
    const notification = new Notification("A picture is finished", { body, tag: job.id, icon: at("/web/icon.svg") });
    notification.onclick = () => { window.focus(); notification.close(); };
  } catch { /* some phones let only service workers notify; the card says it too */ }
}

/** All jobs in a few words: in the tab's title, and in the header for those who look at something else. */
function overall() {
  const active = jobs.active();
  $("jobs-empty").hidden = cards.size > 0;
  const focused = document.activeElement === $("cancel-all");
  $("cancel-all").hidden = active.length < 2;
  $("clear").hidden = ![...cards.values()].some(isSpent);
  if (focused && $("cancel-all").hidden) ($("clear").hidden ? $("watch-title") : $("clear")).focus();
  const running = active.filter((job) => job.status === "running");
  const waiting = active.length - running.length;
  const words = running.length ? `${running.map((job) => `${Math.round(job.progress)}%`).join(" ")}${waiting ? ` +${waiting}` : ""}` : waiting ? `${waiting} waiting` : "";
  document.title = words ? `${words} · gguf_imagegen` : "gguf_imagegen";
  $("activity").hidden = !active.length;
  say($("activity"), words);
  $("activity").title = `${active.length} not finished`;
}
