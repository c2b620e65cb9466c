// The cards of the jobs: the running or newest one large, what waits and what failed a line each, the older ones a strip.

import { at } from "./api.js";
import { advice, draw, makeCard, titleOf } from "./cards.js";
import { $, announce, say, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { kept, keptHere } from "./store.js";

const TOLD = [75, 50, 25]; // percent that are announced
const QUIET = 3000; // ms after one announcement in which no such percentage follows
const DISMISSED = 100; // jobs to leave out, more than the server tells of
const cards = new Map(); // by the job's id
const changed = new Set(); // cards to draw
let dismissed = keptHere.get("dismissed", []); // ids, the newest last
let open = () => {};
let sets = null; // the module with their cards, read when there is one
let drawing = null;
let announced = 0; // when

/** `openViewer(job, index)` shows a finished picture. */
export function start(openViewer) {
  open = openViewer;
  jobs.listen((job, event) => {
    if (job) update(job, event);
    else $("jobs-waiting").hidden = true;
    if (!job) overall();
  });
  $("cancel-all").onclick = async () => {
    await sets?.then((part) => part.cancelAll());
    jobs.active().forEach((job) => stop(job.id));
  };
  $("clear").onclick = () => {
    const gone = dismiss([...cards.values()].filter(({ job }) => job.over));
    $("watch-title").focus();
    toast("Cleared. Finished pictures stay in the gallery.", "info", ["Put back", () => putBack(gone)]);
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

/** Whether all that a job has made was deleted. */
const isEmptied = (job) => job.over && job.pictures.some((picture) => picture.gone) && !job.pictures.some((picture) => picture.name && !picture.gone);

/** The cards go; returns their jobs. */
function dismiss(gone) {
  const left = gone.map(({ job }) => job);
  dismissed = [...dismissed, ...left.map(({ id }) => id)].slice(-DISMISSED);
  keptHere.set("dismissed", dismissed);
  left.forEach(removeCard);
  place();
  overall();
  return left;
}

function putBack(gone) {
  dismissed = dismissed.filter((id) => !gone.some((job) => job.id === id));
  keptHere.set("dismissed", dismissed);
  gone.forEach((job) => update(job, { type: "job" }));
}

/** One card goes; the focus moves on to the next that can. */
function dismissOne(card) {
  const before = [...$("jobs").querySelectorAll(".dismiss:not([hidden])")];
  const at = before.indexOf(card.dismiss);
  dismiss([card]);
  (before[at + 1] ?? before[at - 1] ?? $("watch-title")).focus();
}

function removeCard(job) {
  const card = cards.get(job.id);
  card?.element.remove();
  cards.delete(job.id);
  changed.delete(card);
}

function update(job, event) {
  if (job.set) return void sawSet(job.set);
  if (dismissed.includes(job.id)) return;
  if (event.type === "forgotten") return void removeCard(job);
  if (isEmptied(job)) {
    if (cards.has(job.id)) dismiss([cards.get(job.id)]);
    return;
  }
  if (event.type === "ended") finished(job);
  const card = cards.get(job.id) ?? addCard(job);
  tellProgress(card, event);
  changed.add(card);
  drawing ??= setTimeout(drawAll); // several events of one moment are drawn once
}

/** Pictures of a set are on its card. */
function sawSet(id) {
  sets ??= import("./set_cards.js");
  sets.then((part) => part.saw(id)).catch(() => { sets = null; }); // tried again with the next event
  placeSets();
  overall();
}

/** Let a waiting job go by so many of its caller's, or before them all. */
async function move(job, places = Infinity) {
  const line = jobs.line(job);
  const other = line[Math.max(0, line.indexOf(job) - places)];
  try {
    await jobs.letBefore(job.id, other.id);
  } catch (error) {
    toast(error.message, "error");
  }
}

function drawAll() {
  drawing = null;
  changed.forEach(draw);
  changed.clear();
  place();
  overall();
}

function addCard(job) {
  const card = makeCard(job, { stop, move, dismiss: (id) => dismissOne(cards.get(id)), open: (...picture) => open(...picture) });
  cards.set(job.id, card);
  return card;
}

const PLACES = ["stage", "waiting", "ended", "strip"]; // ids of what holds the cards

/** Above the other pictures as long as nothing newer was asked for. */
function placeSets() {
  const first = Boolean(jobs.all()[0]?.set);
  if (($("sets").nextElementSibling === $("jobs")) === first) return;
  const focused = document.activeElement;
  $("jobs")[first ? "before" : "after"]($("sets"));
  if (focused !== document.activeElement) focused.focus({ preventScroll: true });
}

/** Each card where it belongs, the newest first. */
function place() {
  placeSets();
  const newest = [...cards.values()].sort((one, other) => other.job.order - one.job.order);
  const large = newest.find(({ job }) => job.status === "running") ?? newest.find(({ job }) => job.over && hasPictures(job))
    ?? newest.filter(({ job }) => !job.over).at(-1);
  newest.forEach(({ element }, index) => element.toggleAttribute("data-newest", index === 0));
  const focused = document.activeElement;
  newest.forEach(offerPlaces);
  for (const name of PLACES) {
    const here = newest.filter((card) => placeOf(card, large) === name);
    if (name === "waiting") here.sort((one, other) => one.job.position - other.job.position);
    here.forEach(({ element }, index) => {
      const there = $(name).children[index];
      if (there !== element) $(name).insertBefore(element, there ?? null);
    });
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/** What waits behind others of its caller can go sooner. */
function offerPlaces({ job, sooner, next, cancel }) {
  const focused = [sooner, next].includes(document.activeElement);
  sooner.hidden = next.hidden = job.status !== "queued" || jobs.line(job)[0] === job;
  if (focused && next.hidden) cancel.focus();
}

const hasPictures = (job) => job.pictures.some((picture) => picture.name && !picture.gone);

function placeOf(card, large) {
  if (card === large) return "stage";
  if (card.job.status === "queued") return "waiting";
  return card.job.over && !hasPictures(card.job) ? "ended" : "strip";
}

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
  const text = titleOf(job);
  const what = { succeeded: "is finished", failed: "failed", cancelled: "was cancelled" }[job.status];
  tell(`“${text}” ${what}. ${job.status === "failed" && job.error ? advice(job.error) : ""}`);
  if (job.status === "succeeded" && $("notify").checked && document.hidden) notify(job, text);
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
  $("jobs-empty").hidden = cards.size > 0 || !$("jobs-waiting").hidden;
  const focused = document.activeElement === $("cancel-all");
  $("cancel-all").hidden = active.length < 2;
  $("clear").hidden = ![...cards.values()].some(({ job }) => job.over);
  if (focused && $("cancel-all").hidden) ($("clear").hidden ? $("watch-title") : $("clear")).focus();
  const running = active.filter((job) => job.status === "running");
  const waiting = active.length - running.length;
  const words = running.length ? `${running.map((job) => `${Math.round(job.progress)}%`).join(" ")}${waiting ? ` +${waiting}` : ""}` : waiting ? `${waiting} waiting` : "";
  document.title = words ? `${words} · gguf_imagegen` : "gguf_imagegen";
  $("progress").hidden = !running.length;
  $("progress").value = running[0]?.progress ?? 0;
  $("activity").hidden = !active.length;
  say($("activity"), words);
  $("activity").title = `${active.length} not finished`;
}
