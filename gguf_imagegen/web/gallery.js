// The finished pictures of this server, page by page as one scrolls.

import { call, imageUrl } from "./api.js";
import { $, button, h, say } from "./dom.js";
import * as jobs from "./jobs.js";
import * as selection from "./selection.js";
import { open } from "./viewer.js";

const PAGE = 60;
const WIDTH = 512; // of thumbnails: sharp on dense screens, and where a wide picture fills a square
let items = []; // the newest first
let more = true;
let total = 0; // of the server's pictures
let reading = null;
let begun = false;
let stale = false;

export function start() {
  $("gallery-waiting").append(...Array.from({ length: 12 }, () => h("div", { class: "skeleton" })));
  const scrolled = (entries) => {
    const failed = $("gallery-error").hasChildNodes(); // tried again when told, or with the next picture
    if (!failed && entries.some((entry) => entry.isIntersecting)) fillView();
  };
  new IntersectionObserver(scrolled, { rootMargin: "800px" }).observe($("gallery-end"));
  selection.start(forget, () => { if ($("gallery-stars").checked) filter(); });
  $("gallery-find").oninput = filter;
  $("gallery-stars").onchange = filter;
  jobs.listen((job, event) => {
    if (event.type !== "ended" && event.type !== "online") return;
    stale = true;
    if (!$("view-gallery").hidden) enter();
  });
}

/** The gallery is looked at. */
export async function enter() {
  if (!begun) await fillView();
  else if (stale) await attempt(refresh);
}

/** Only what was asked for; further pages are read until the view is full again. */
function filter() {
  for (const each of $("gallery").children) each.hidden = !isWanted(items.find(({ name }) => name === each.dataset.name));
  tell();
  fillView();
}

function isWanted({ name, parameters }) {
  const words = $("gallery-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = Object.values(parameters).join(" ").toLowerCase();
  return words.every((word) => text.includes(word)) && (!$("gallery-stars").checked || selection.isStarred(name));
}

/** Items after the last one that is known. */
export async function read() {
  const before = items.length ? `&before=${encodeURIComponent(items.at(-1).name)}` : "";
  const { data, has_more: rest, total: all } = await call("GET", `/v1/images?limit=${PAGE}${before}`);
  total = all;
  more = rest && data.length > 0;
  begun = true;
  const found = data.map(item);
  items = [...items, ...found];
  $("gallery").append(...found.map(tile));
  return found;
}

/** Items after this one, which others may have read meanwhile. */
export async function readOn(name) {
  const after = () => items.slice(items.findIndex((each) => each.name === name) + 1);
  if (more && !after().length) await attempt(read);
  return after();
}

/** Pages until the view is full. */
async function fillView() {
  while (more && !$("view-gallery").hidden && $("gallery-end").getBoundingClientRect().top < innerHeight + 800) {
    if (!await attempt(read)) return;
  }
}

/** What came, and what went from the first page, since. */
async function refresh() {
  const { data, has_more: rest, total: all } = await call("GET", `/v1/images?limit=${PAGE}`);
  stale = false;
  total = all;
  const known = new Set(items.map((each) => each.name));
  const now = new Set(data.map(({ id }) => id));
  const last = rest ? data.at(-1).id : ""; // what the answer says nothing about
  items.filter(({ name }) => name >= last && !now.has(name)).forEach(({ name }) => { jobs.pictureGone(name); forget(name); });
  const found = data.map(item).filter(({ name }) => !known.has(name));
  const newer = found.filter(({ name }) => !items.length || name > items[0].name);
  items = [...newer, ...items];
  $("gallery").prepend(...newer.map(tile));
  return true;
}

/** One reading at a time; what goes wrong is said where the pictures would be. */
function attempt(what) {
  reading ??= what().then(
    (result) => { $("gallery-error").replaceChildren(); return result; },
    (error) => { $("gallery-error").replaceChildren(error.message, " ", button("Try again", () => (begun ? attempt(refresh) : fillView()), { class: "small" })); },
  ).finally(() => { reading = null; tell(); });
  return reading;
}

function tell() {
  $("gallery-empty").hidden = items.length > 0 || !begun;
  const shown = [...$("gallery").children].some((each) => !each.hidden);
  $("gallery-none").hidden = shown || more || !items.length;
  $("gallery-waiting").hidden = begun || $("gallery-error").hasChildNodes();
  say($("gallery-hint"), items.length ? `${total} picture${total === 1 ? "" : "s"}` : "");
}

const item = ({ id, parameters }) => ({ name: id, parameters, whole: Promise.resolve() });

function tile(each) {
  const image = h("img", { src: imageUrl(each.name, WIDTH), alt: "", loading: "lazy", decoding: "async" });
  const text = each.parameters.Prompt || "picture";
  const show = ({ currentTarget }) => selection.takes(currentTarget, each.name) || open(items, items.findIndex(({ name }) => name === each.name), { shelf: true });
  const element = h("li", { "data-name": each.name, hidden: !isWanted(each) },
    h("button", { type: "button", class: "tile", "aria-label": `Open: ${text}`, dir: "auto", title: each.parameters.Prompt, onclick: show }, image), selection.starButton(each.name, text));
  image.onerror = () => element.classList.add("gone");
  return element;
}

/** How many there are. */
export const count = () => total;
/** Whether a list that begins with this picture is as long as it says: the gallery's own, or another one. */
export const knows = (name, shelf) => !shelf || items[0]?.name === name;

/** A picture that was deleted. */
export function forget(name) {
  if (items.some((each) => each.name === name)) total -= 1;
  items = items.filter((each) => each.name !== name);
  document.querySelector(`#gallery [data-name="${CSS.escape(name)}"]`)?.remove();
  tell();
}
