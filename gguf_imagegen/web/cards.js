// A job's card: its pictures, sharpening as they come, how far it is, and what can be done with it.

import { imageUrl } from "./api.js";
import { load } from "./create.js";
import { $, button, h, say, seconds } from "./dom.js";
import * as jobs from "./jobs.js";
import { ofJob } from "./settings.js";
import * as sources from "./sources.js";

const PHASES = {
  queued: "Waiting", loading: "Loading the model", conditioning: "Reading the prompt", encoding: "Encoding the picture",
  sampling: "Sampling", hires: "Second pass", decoding: "Decoding", upscaling: "Upscaling",
};
const FADE = 150; // ms
const REDONE = ["generation", "edit"];
const WIDTH = 1024; // of the pictures on the cards: small files, and sharp enough

/** What a job is called. */
export const titleOf = ({ parameters, operation }) => parameters.prompt || (operation === "upscale" ? "Upscaled picture" : "Picture without a prompt");

/** With what the buttons do: `stop(id)`, `move(job, places)`, `dismiss(id)` and `open(job, index)`. */
export function makeCard(job, { stop, move, dismiss, open }) {
  const text = titleOf(job);
  const cancel = button("Cancel", () => stop(job.id), { class: "small", "aria-label": `Cancel: ${text}`, "data-act": "cancel" });
  const again = button("Load settings", () => load(ofJob(job), sources.ofJob(job.id)), { class: "small", hidden: true });
  const redo = button("Redo", () => once(job), { class: "small redo", hidden: true, title: "The same settings with a new seed", "aria-label": `Redo: ${text}` });
  const sooner = button("↑", () => move(job, 1), { class: "small icon", hidden: true, title: "Run sooner", "aria-label": `Run sooner: ${text}`, "data-act": "sooner" });
  const next = button("Run next", () => move(job), { class: "small", hidden: true, "aria-label": `Run next: ${text}`, "data-act": "next" });
  const away = button("×", () => dismiss(job.id), { class: "small dismiss", hidden: true, title: "Dismiss", "aria-label": `Dismiss: ${text}` });
  const state = h("p", { class: "state" });
  const error = h("p", { class: "error" });
  const notes = h("ul", { class: "notes" });
  const tiles = job.pictures.map((_, index) => makeTile(job, index, open));
  const element = h("article", { class: "job", "data-job": job.id, "aria-label": text },
    h("div", { class: "tiles", "data-count": tiles.length }, ...tiles.map((tile) => tile.element)),
    h("div", { class: "bar" }, h("p", { class: "prompt", title: text, dir: "auto" }, text), sooner, next, cancel, again, redo, away),
    state, error, notes);
  return { job, element, cancel, again, redo, sooner, next, dismiss: away, state, error, notes, tiles, text, told: 0 };
}

function makeTile(job, index, open) {
  const { width, height } = job.parameters;
  const image = h("img", { alt: "", width, height });
  image.onerror = () => lookFor(job.pictures[index].name);
  const view = h("button", { type: "button", class: "tile", onclick: () => open(job, index) }, image);
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  ring.setAttribute("viewBox", "0 0 36 36");
  ring.innerHTML = '<circle cx="18" cy="18" r="15.9"/><circle class="done" cx="18" cy="18" r="15.9" pathLength="100"/>';
  const percent = h("span", { class: "percent" });
  const progress = h("div", { class: "ring", role: "progressbar", "aria-label": `Picture ${index + 1} of ${job.n}`, "aria-valuemin": 0, "aria-valuemax": 100 }, ring, percent);
  const element = h("div", { class: "picture" }, view, progress);
  return { element, view, image, progress, percent, ring: ring.querySelector(".done"), shown: "" };
}

async function once(job) {
  const { redo } = await import("./redo.js");
  return redo(job);
}

/** A picture that could not be shown may have been deleted, by another page or in its folder. */
async function lookFor(name) {
  if (!name) return;
  const answer = await fetch(imageUrl(name), { method: "HEAD" }).catch(() => null);
  if (answer?.status === 404) jobs.pictureGone(name);
}

/** As its job is now. */
export function draw(card) {
  const { job } = card;
  const focused = document.activeElement === card.cancel;
  card.element.dataset.status = job.status;
  card.cancel.hidden = job.over;
  card.again.hidden = job.status !== "failed" && job.status !== "cancelled";
  card.redo.hidden = !job.over || !REDONE.includes(job.operation);
  card.dismiss.hidden = !job.over;
  say(card.state, stateWords(job));
  say(card.error, job.status === "failed" && job.error ? advice(job.error) : "");
  if (card.notes.childElementCount !== job.warnings.length) {
    card.notes.replaceChildren(...job.warnings.map((text) => h("li", {}, text)));
  }
  job.pictures.forEach((picture, index) => drawTile(card.tiles[index], job, picture, index));
  if (focused && job.over) (card.dismiss.hidden ? card.tiles.find((tile) => !tile.view.disabled)?.view : card.dismiss)?.focus();
}

function drawTile(tile, job, picture, index) {
  tile.element.hidden = Boolean(picture.gone);
  const source = picture.name ? imageUrl(picture.name, WIDTH) : picture.preview ? `data:image/png;base64,${picture.preview}` : "";
  if (source && source !== tile.shown) {
    tile.shown = source;
    show(tile, source);
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

/** A finished picture takes the place of its preview when it has come. */
async function show(tile, source) {
  const before = tile.image.getAttribute("src");
  if (before && !source.startsWith("data:")) {
    const whole = new Image();
    whole.src = source;
    await whole.decode().catch(() => {}); // what cannot be shown is looked for by its own handler
    if (tile.shown !== source) return;
    fade(tile, before);
  }
  tile.image.src = source;
}

/** What is shown next comes over what was shown before. */
function fade({ view, image }, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  view.style.background = `center / contain no-repeat url("${before}")`;
  image.animate({ opacity: [0, 1] }, FADE).onfinish = () => { view.style.background = ""; };
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
  if (job.status === "succeeded") return `${job.model} · ${width} × ${height}`;
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
  model_load_failed: "Choose another model, or download this one again.",
  generation_failed: "Other settings or a smaller size may work.",
};

/** What went wrong, and what to do. */
export const advice = (error) => [error.message, ADVICE[error.code]].filter(Boolean).join(" ");
