// The finished pictures of this server, page by page as one scrolls.

import { call, imageUrl } from "./api.js";
import { $, button, h, say } from "./dom.js";
import * as jobs from "./jobs.js";
import * as selection from "./selection.js";
import * as tiles from "./tiles.js";
import * as viewer from "./viewer.js";

const PAGE = 60;
const WIDTHS = [128, 256, 512]; // of thumbnails
let items = []; // the newest first
let more = true;
let total = 0; // of the server's pictures
let reading = null;
let begun = false;
let stale = false;

export function start() {
  const scrolled = (entries) => {
    const failed = $("gallery-error").hasChildNodes(); // tried again when told, or with the next picture
    if (!failed && entries.some((entry) => entry.isIntersecting)) fillView();
  };
  new IntersectionObserver(scrolled, { rootMargin: "800px" }).observe($("gallery-end"));
  tiles.start(makeTile);
  selection.start(forget, () => { if ($("gallery-stars").checked) filter(); }, (left, right) => show(right, left));
  viewer.start({ forget, readOn, count, knows, compareWith: selection.compareWith, star: selection.star, isStarred: selection.isStarred });
  $("gallery-find").oninput = filter;
  $("gallery-stars").onchange = filter;
  $("gallery-all").onclick = () => { [$("gallery-find").value, $("gallery-stars").checked] = ["", false]; filter(); $("gallery-find").focus(); };
  jobs.listen((job, event) => {
    if (event.type !== "ended" && event.type !== "online") return;
    stale = true;
    if (!$("view-gallery").hidden) enter();
  });
}

/** The gallery is looked at. */
export async function enter() {
  tiles.show(wanted());
  if (!begun) await fillView();
  else if (stale) await attempt(refresh);
}

/** Only what was asked for; further pages are read until the view is full again. */
function filter() {
  tell();
  fillView();
}

/** The items that were asked for. */
function wanted() {
  const words = $("gallery-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const starred = $("gallery-stars").checked;
  if (!words.length && !starred) return items;
  return items.filter(({ name, parameters }) => {
    const text = Object.values(parameters).join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && (!starred || selection.isStarred(name));
  });
}

/** Items after the last one that is known. */
async function read() {
  const before = items.length ? `&before=${encodeURIComponent(items.at(-1).name)}` : "";
  const { data, has_more: rest, total: all } = await call("GET", `/v1/images?limit=${PAGE}${before}`);
  total = all;
  more = rest && data.length > 0;
  begun = true;
  const found = data.map(item);
  items = [...items, ...found];
  return found;
}

/** Items after this one, which others may have read meanwhile. */
async function readOn(name) {
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
  stale = false; // what comes meanwhile is read after this
  const { data, has_more: rest, total: all } = await call("GET", `/v1/images?limit=${PAGE}`);
  total = all;
  const known = new Set(items.map((each) => each.name));
  const now = new Set(data.map(({ id }) => id));
  const last = rest ? data.at(-1).id : ""; // what the answer says nothing about
  items.filter(({ name }) => name >= last && !now.has(name)).forEach(({ name }) => { jobs.pictureGone(name); forget(name); });
  const found = data.map(item).filter(({ name }) => !known.has(name));
  const newer = found.filter(({ name }) => !items.length || name > items[0].name);
  items = [...newer, ...items];
  return true;
}

/** One reading at a time; what goes wrong is said where the pictures would be. */
function attempt(what) {
  reading ??= what().then(
    (result) => { $("gallery-error").replaceChildren(); return result; },
    (error) => { stale = begun; $("gallery-error").replaceChildren(error.message, " ", button("Try again", () => (begun ? attempt(refresh) : fillView()), { class: "small" })); },
  ).finally(() => {
    reading = null;
    tell();
    if (begun && stale && !$("gallery-error").hasChildNodes() && !$("view-gallery").hidden) attempt(refresh);
  });
  return reading;
}

function tell() {
  const shown = wanted();
  tiles.show(shown);
  $("gallery-empty").hidden = items.length > 0 || !begun;
  $("gallery-none").hidden = shown.length > 0 || more || !items.length;
  $("gallery-waiting").hidden = begun || $("gallery-error").hasChildNodes();
  say($("gallery-hint"), items.length ? `${total} picture${total === 1 ? "" : "s"}` : "");
}

const item = ({ id, parameters }) => ({ name: id, parameters, whole: Promise.resolve() });

/** The address of a copy that is sharp where the picture fills a square of so many px. */
function thumbnail({ name, parameters }, side) {
  const [width, height] = (parameters.Size ?? "").split("x");
  const across = side * devicePixelRatio * Math.max(1, width / height || 1);
  return imageUrl(name, WIDTHS.find((each) => each >= across) ?? WIDTHS.at(-1));
}

/** A tile: `fill(item)` makes it that of a picture, which `look(side)` fetches. */
function makeTile() {
  let item = null;
  let looked = false;
  const image = h("img", { alt: "", decoding: "async" });
  const choose = ({ shiftKey }) => selection.takes(item.name, shiftKey ? wanted().map(({ name }) => name) : []) || show(item.name);
  const open = h("button", { type: "button", class: "tile", dir: "auto", onclick: choose }, image);
  const star = selection.starButton(() => item.name);
  const element = h("li", {}, open, star);
  image.onload = () => { if (looked) image.style.visibility = ""; };
  image.onerror = async () => {
    const missed = item;
    const answer = looked && await fetch(image.src, { method: "HEAD" }).catch(() => null);
    if (item !== missed || !looked) return;
    if (answer?.status === 404) element.classList.add("gone");
    else looked = false; // the connection was lost: it is fetched with the next ones
  };
  const fill = (next) => {
    [item, looked] = [next, false];
    const text = item.parameters.Prompt || "picture";
    image.style.visibility = "hidden"; // it is still the picture before
    element.classList.remove("gone");
    element.dataset.name = item.name;
    open.title = item.parameters.Prompt ?? "";
    open.setAttribute("aria-label", `Open: ${text}`);
    star.setAttribute("aria-label", `Star: ${text}`);
    selection.mark(open, star, item.name);
  };
  const look = (side) => {
    if (looked) return;
    looked = true;
    image.src = thumbnail(item, side);
  };
  return { element, fill, look };
}

/** Open the viewer on a picture, perhaps beside another one. */
const show = (name, compared) => viewer.open(items, items.findIndex((each) => each.name === name), { shelf: true, compared });

/** How many there are. */
const count = () => total;
/** Whether a list that begins with this picture is as long as it says: the gallery's own, or another one. */
const knows = (name, shelf) => !shelf || items[0]?.name === name;

/** A picture that was deleted. */
function forget(name) {
  if (items.some((each) => each.name === name)) total -= 1;
  items = items.filter((each) => each.name !== name);
  tell();
}
