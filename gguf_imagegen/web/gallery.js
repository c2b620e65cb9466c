// The finished pictures of this server, page by page as one scrolls.

import { call, imagePath } from "./api.js";
import { $, h, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { open } from "./viewer.js";

let items = [];
let more = true;
let reading = false;
let begun = false;

export function start() {
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) read(); }, { rootMargin: "600px" })
    .observe($("gallery-end"));
  jobs.listen((job, event) => { if (event.type === "ended" && begun) refresh(); });
}

export function enter() {
  if (begun) refresh();
  else read();
  begun = true;
}

async function read() {
  if (reading || !more || $("view-gallery").hidden) return;
  reading = true;
  try {
    const before = items.length ? `&before=${encodeURIComponent(items.at(-1).name)}` : "";
    const { data, has_more: rest } = await call("GET", `/v1/images?limit=60${before}`);
    more = rest;
    add(data.map(item), false);
  } catch (error) {
    toast(error.message, "error");
  }
  reading = false;
  $("gallery-empty").hidden = items.length > 0;
}

/** What came since. */
async function refresh() {
  try {
    const { data } = await call("GET", "/v1/images?limit=60");
    const known = new Set(items.map((each) => each.name));
    add(data.map(item).filter((each) => !known.has(each.name)), true);
  } catch { /* the connection's own message says so */ }
  $("gallery-empty").hidden = items.length > 0;
}

const item = ({ id, parameters }) => ({ name: id, parameters });

function add(found, first) {
  items = first ? [...found, ...items] : [...items, ...found];
  const tiles = found.map((each) => {
    const label = each.parameters.Prompt || "Picture";
    return h("button", { type: "button", class: "tile", "data-name": each.name, "aria-label": `Open: ${label}`, onclick: () => open(items, items.indexOf(each)) },
      h("img", { src: imagePath(each.name), alt: "", loading: "lazy", decoding: "async" }));
  });
  if (first) $("gallery").prepend(...tiles);
  else $("gallery").append(...tiles);
}

export function forget(name) {
  items = items.filter((each) => each.name !== name);
  document.querySelector(`#gallery [data-name="${CSS.escape(name)}"]`)?.remove();
  $("gallery-empty").hidden = items.length > 0;
}
