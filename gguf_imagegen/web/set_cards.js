// The cards of sets: a grid that fills as pictures come, each of which can be cancelled, and a contact sheet of all.

import { ApiError, at, blob, call, hasKey, imageUrl, stream } from "./api.js";
import { $, announce, button, h, say, seconds, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { style } from "./late_style.js";
import { keptHere } from "./store.js";

const FOLLOWED = 3; // sets at once, as a browser has few connections to a server
const AGAIN = 2000; // ms after a lost connection
const WIDTH = devicePixelRatio > 1 || innerWidth > 2400 ? 512 : 256; // of the pictures in the grid
const MOST_COLUMNS = 8;
const OVER = ["succeeded", "failed", "cancelled"];
const cards = new Map(); // by the set's id
let dismissed = keptHere.get("dismissed-sets", []);
let followed = 0;

/** A set of which a job was heard. */
export function saw(id) {
  if (cards.has(id) || dismissed.includes(id)) return;
  cards.set(id, { id, set: null });
  follow(cards.get(id));
}

/** A set that was asked for here. */
export async function show(set) {
  if (!cards.has(set.id)) cards.set(set.id, { id: set.id, set: null });
  const card = cards.get(set.id);
  await style();
  take(card, set);
  $("jobs").before($("sets")); // where its first job would put it, and then out of sight
  card.element.scrollIntoView({ block: "nearest" });
  card.title.focus();
  follow(card);
}

/** Cancel all that go on. */
export const cancelAll = () => Promise.all([...cards.values()].filter(({ set }) => set && !set.ended).map(cancel));

/** How a set goes, until it has ended; the others wait for their turn. */
async function follow(card) {
  if (card.following) return;
  card.following = true;
  await style();
  while (cards.has(card.id) && !card.set?.ended) {
    if (followed < FOLLOWED && await once(card)) break;
    await new Promise((resolve) => { setTimeout(resolve, AGAIN); });
  }
  card.following = false;
}

/** One connection, to its end; whether the set is not there any more. */
async function once(card) {
  followed += 1;
  try {
    for await (const frame of stream("GET", `/v1/images/sets/${card.id}/events`)) {
      if (!cards.has(card.id)) return true;
      if (frame?.type === "set") take(card, frame);
      else if (frame?.type === "item") takeItem(card, frame);
    }
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      forget(card);
      return true;
    }
  } finally {
    followed -= 1;
  }
  return false;
}

function take(card, set) {
  const ends = card.set && !card.set.ended && set.ended;
  card.set = set;
  if (!card.element) make(card);
  set.items.forEach((item, index) => drawCell(card, card.cells[index], item));
  draw(card);
  if (ends) announce(`A set of ${set.n} pictures is finished.`);
}

function takeItem(card, item) {
  const { type: _, ...own } = item;
  card.set.items[item.index] = own;
  drawCell(card, card.cells[item.index], own);
  draw(card);
}

function make(card) {
  const { set } = card;
  const prompts = [...new Set(set.items.map(({ prompt }) => prompt))];
  const text = prompts.slice(0, 3).join(" · ") + (prompts.length > 3 ? " …" : "");
  card.title = h("p", { class: "prompt", dir: "auto", tabindex: -1, title: prompts.join("\n") }, text);
  card.state = h("p", { class: "state" });
  card.bar = h("progress", { max: set.n, value: 0, "aria-label": "Set" });
  card.cancel = button("Cancel set", () => cancel(card), { class: "small" });
  card.away = button("×", () => dismiss(card), { class: "small dismiss", title: "Dismiss", "aria-label": `Dismiss the set: ${text}` });
  card.sheet = h("a", { class: "button small", href: at(set.sheet), download: `${set.id}.png`, onclick: (event) => saveSheet(event, set) }, "Contact sheet");
  card.cells = set.items.map((item) => makeCell(card, item));
  const last = set.varies.at(-1);
  const columns = last ? new Set(set.items.map((item) => item[last])).size : 1;
  const grid = h("ul", { class: "cells", "aria-label": "Pictures of the set" }, ...card.cells.map(({ element }) => element));
  grid.style.setProperty("--columns", Math.min(columns > 1 ? columns : set.n, MOST_COLUMNS));
  card.element = h("article", { class: "job set", "data-set": set.id, "aria-label": `Set: ${text}` },
    h("div", { class: "bar" }, card.title, card.sheet, card.cancel, card.away), card.state, card.bar, grid,
    set.warnings.length ? h("ul", { class: "notes" }, ...set.warnings.map((each) => h("li", {}, each))) : null);
  $("sets").prepend(card.element);
}

function makeCell(card, item) {
  const label = labelOf(card.set, item);
  const picture = h("img", { alt: label, loading: "lazy" });
  const link = h("a", { class: "tile", onclick: look }, picture);
  const words = h("span", { class: "percent" });
  const cancel = button("×", () => cancelItem(card, item.index), { class: "dismiss", "aria-label": `Cancel: ${label}` });
  return { element: h("li", {}, link, words, cancel, h("small", { title: label, dir: "auto" }, label)), link, picture, words, cancel };
}

/** The picture over this view, where the viewer's Close leads back to. */
function look(event) {
  event.preventDefault();
  history.pushState({ over: "create" }, "", event.currentTarget.href);
  window.dispatchEvent(new Event("hashchange"));
}

/** What makes an item differ from the others. */
const labelOf = ({ varies }, item) => varies.map((name) => (name === "prompt" || name === "model" || name === "sampler" ? item[name] : `${name.replace("_scale", "")} ${item[name]}`)).join(", ")
  || `picture ${item.index + 1}`;

function drawCell(card, cell, item) {
  const over = OVER.includes(item.status);
  const focused = document.activeElement === cell.cancel;
  cell.element.dataset.status = item.status;
  cell.cancel.hidden = over;
  if (item.name && !cell.picture.src) {
    cell.picture.src = imageUrl(item.name, WIDTH);
    cell.link.href = `#/picture/${encodeURIComponent(item.name)}`;
  }
  say(cell.words, item.name ? "" : item.error?.message ?? { queued: "Waiting", running: `${Math.round(item.progress)}%`, cancelled: "Cancelled" }[item.status] ?? "");
  if (focused && over) card.title.focus();
}

function draw({ set, state, bar, cancel, away, sheet }) {
  const done = set.items.filter(({ status }) => OVER.includes(status)).length;
  const made = set.items.some(({ name }) => name);
  const over = Boolean(set.ended) || done === set.n;
  const failed = set.items.filter(({ status }) => status === "failed").length;
  const words = over ? [`${set.n} pictures`, set.status === "cancelled" ? "cancelled" : ""] : [`${done} of ${set.n}`, set.eta ? `${seconds(set.eta)} left` : ""];
  say(state, [...words, failed ? `${failed} failed` : ""].filter(Boolean).join(" · "));
  bar.value = done;
  bar.hidden = cancel.hidden = over;
  away.hidden = !over;
  sheet.hidden = !made;
}

async function attempt(act) {
  try {
    await act();
  } catch (error) {
    if (error.status !== 404) toast(error.message, "error");
  }
}

const cancel = (card) => attempt(async () => take(card, await call("DELETE", `/v1/images/sets/${card.id}`)));
const cancelItem = (card, index) => attempt(async () => takeItem(card, await call("DELETE", `/v1/images/sets/${card.id}/items/${index}`)));

/** A link cannot bring the key. */
async function saveSheet(event, { id, sheet }) {
  if (!hasKey()) return;
  event.preventDefault();
  await attempt(async () => {
    const url = URL.createObjectURL(await blob(sheet));
    h("a", { href: url, download: `${id}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  });
}

function forget(card) {
  cards.delete(card.id);
  card.element?.remove();
}

function dismiss(card) {
  dismissed = [...dismissed, card.id].slice(-100);
  keptHere.set("dismissed-sets", dismissed);
  forget(card);
  $("watch-title").focus();
}

jobs.listen((job, event) => {
  if (event.type !== "gone") return;
  for (const { element } of cards.values()) element?.querySelectorAll("a").forEach((link) => { if (job.pictures.some(({ gone, name }) => gone && link.hash.endsWith(name))) link.closest("li").hidden = true; });
});
