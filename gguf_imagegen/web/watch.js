// The cards of the jobs: a picture each, sharpening as it comes.

import { imagePath } from "./api.js";
import { $, announce, button, h, seconds, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { kept } from "./dom.js";

const SHOWN = 12; // jobs that have ended
const PHASES = {
  queued: "Waiting", loading: "Loading the model", conditioning: "Reading the prompt", encoding: "Reading the picture",
  sampling: "Painting", hires: "Painting larger", decoding: "Developing", upscaling: "Enlarging",
};
const cards = new Map();
let open = () => {};

export function start(openViewer) {
  open = openViewer;
  jobs.listen((job, event) => {
    if (job) update(job, event);
    title();
  });
  $("cancel-all").onclick = () => jobs.active().forEach((job) => stop(job.id));
}

async function stop(id) {
  try {
    await jobs.cancel(id);
  } catch (error) {
    toast(error.message, "error");
  }
}

function update(job, event) {
  let card = cards.get(job.id);
  if (!card) {
    card = makeCard(job);
    cards.set(job.id, card);
    const after = [...cards.values()].find((other) => other.job.order < job.order && other !== card);
    $("jobs").insertBefore(card.element, after ? after.element : null);
    prune();
  }
  draw(card);
  if (event.type === "ended") finished(job);
}

function prune() {
  const over = [...cards.values()].filter((card) => card.job.over).sort((one, other) => other.job.order - one.job.order);
  for (const card of over.slice(SHOWN)) {
    card.element.remove();
    cards.delete(card.job.id);
  }
  $("jobs-empty").hidden = cards.size > 0;
}

function makeCard(job) {
  const cancel = button("Cancel", () => stop(job.id), { class: "small" });
  const words = h("p", { class: "prompt" }, job.parameters.prompt || job.operation);
  const state = h("p", { class: "state" });
  const error = h("p", { class: "error" });
  const notes = h("ul", { class: "notes" });
  const tiles = job.pictures.map((_, index) => makeTile(job, index));
  const element = h("article", { class: "job", "data-job": job.id, "aria-label": job.parameters.prompt || job.operation },
    h("div", { class: "bar" }, words, cancel), h("div", { class: "tiles" }, ...tiles.map((tile) => tile.element)),
    state, error, notes);
  return { job, element, cancel, state, error, notes, tiles };
}

function makeTile(job, index) {
  const image = h("img", { alt: "", width: job.parameters.width, height: job.parameters.height });
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  ring.setAttribute("viewBox", "0 0 36 36");
  ring.innerHTML = '<circle cx="18" cy="18" r="15.9"/><circle class="done" cx="18" cy="18" r="15.9" pathLength="100"/>';
  const percent = h("span", { class: "percent" });
  const progress = h("div", { class: "ring", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, ring, percent);
  const element = h("button", { type: "button", class: "tile", onclick: () => open(job, index) }, image, progress);
  return { element, image, progress, percent, ring: ring.querySelector(".done"), shown: "" };
}

function draw(card) {
  const { job } = card;
  card.element.dataset.status = job.status;
  card.cancel.hidden = job.over;
  card.state.textContent = stateWords(job);
  card.error.textContent = job.status === "failed" && job.error ? advice(job.error) : "";
  if (card.notes.childElementCount !== job.warnings.length) {
    card.notes.replaceChildren(...job.warnings.map((text) => h("li", {}, text)));
  }
  job.pictures.forEach((picture, index) => drawTile(card.tiles[index], job, picture, index));
}

function drawTile(tile, job, picture, index) {
  const source = picture.name ? imagePath(picture.name)
    : picture.preview ? `data:image/png;base64,${picture.preview}` : "";
  if (source !== tile.shown) {
    tile.shown = source;
    if (source) tile.image.src = source;
    tile.element.dataset.previews = Number(tile.element.dataset.previews || 0) + (picture.preview ? 1 : 0);
  }
  const label = `Picture ${index + 1} of ${job.n}: ${job.parameters.prompt}`;
  tile.image.alt = picture.name ? label : "";
  tile.element.disabled = !picture.name;
  tile.element.setAttribute("aria-label", picture.name ? `Open. ${label}` : label);
  tile.element.dataset.state = picture.name ? "done" : picture.preview ? "preview" : "empty";
  const done = part(job, picture);
  tile.progress.hidden = Boolean(picture.name) || job.over;
  tile.progress.setAttribute("aria-valuenow", Math.round(100 * done));
  tile.progress.setAttribute("aria-label", `Picture ${index + 1}`);
  tile.ring.style.strokeDasharray = `${100 * done} 100`;
  tile.percent.textContent = job.status === "queued" ? `#${job.position ?? ""}` : `${Math.round(100 * done)}%`;
}

/** How much of one picture is done, 0 to 1. */
function part(job, picture) {
  if (picture.name) return 1;
  if (job.loading != null) return 0;
  if (picture.phase === "sampling" || picture.phase === "hires" || picture.phase === "upscaling") {
    return picture.steps ? picture.step / picture.steps : 0;
  }
  return picture.phase === "decoding" ? 1 : 0;
}

function stateWords(job) {
  if (job.status === "queued") {
    const wait = job.eta ? `, about ${seconds(job.eta)}` : "";
    return job.position > 1 ? `Waiting, ${job.position - 1} before it${wait}` : `Next in line${wait}`;
  }
  if (job.status === "cancelled") return "Cancelled";
  if (job.status === "failed") return "Failed";
  if (job.status === "succeeded") return `${job.model} · ${job.parameters.width}×${job.parameters.height} · seed ${job.parameters.seed}`;
  if (job.loading != null) return `Loading the model, ${Math.round(100 * job.loading)}%`;
  const index = job.pictures.findIndex((picture) => !picture.name);
  const picture = job.pictures[index] || {};
  const words = [PHASES[picture.phase] || "Starting"];
  if (picture.step && picture.phase !== "decoding") words[0] += `, step ${picture.step} of ${picture.steps}`;
  if (job.n > 1) words.push(`picture ${index + 1} of ${job.n}`);
  if (job.eta) words.push(`${seconds(job.eta)} left`);
  return words.join(" · ");
}

const ADVICE = {
  worker_crashed: "The server goes on: generate again, smaller if it happens twice.",
  insufficient_memory: "Choose a smaller size or a smaller model.",
  model_load_failed: "Look at the model's files, or choose another one.",
};

const advice = (error) => [error.message, ADVICE[error.code]].filter(Boolean).join(" ");

function finished(job) {
  const what = { succeeded: "is finished", failed: "failed", cancelled: "was cancelled" }[job.status];
  announce(`The picture “${job.parameters.prompt}” ${what}. ${job.error && job.status === "failed" ? job.error.message : ""}`);
  if (job.status === "succeeded" && kept.get("notify", false) && document.hidden && Notification.permission === "granted") {
    new Notification("A picture is finished", { body: job.parameters.prompt, tag: job.id });
  }
  prune();
}

function title() {
  const active = jobs.active();
  $("cancel-all").hidden = active.length < 2;
  const running = active.find((job) => job.status === "running");
  const waiting = active.length - (running ? 1 : 0);
  const head = running ? `${Math.round(running.progress)}%${waiting ? ` +${waiting}` : ""} · ` : waiting ? `${waiting} waiting · ` : "";
  document.title = `${head}gguf_imagegen`;
}
