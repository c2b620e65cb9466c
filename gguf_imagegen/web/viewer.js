// One picture, full, with everything that made it and what can be done with it.

import { addressOf, pictured } from "./address.js";
import { call, hasKey, imagePath, imageUrl } from "./api.js";
import { comparison, differences } from "./compare.js";
import { load } from "./create.js";
import { $, ask, button, copy, h, press, pressed, toast } from "./dom.js";
import { useMade } from "./inputs.js";
import { pictureGone, take } from "./jobs.js";
import { curlOf, ofJob as parametersOf, requestOf, toReplace } from "./settings.js";
import * as sources from "./sources.js";
import * as zoom from "./zoom.js";

let list = []; // items {name, parameters, source, whole}; `whole` tells when the parameters are all there
let index = 0;
let endless = false; // whether the list is the gallery's, which may go on
let beside = null; // the item that this one is compared with
let gallery = null; // {forget, readOn, count, knows, compareWith, star, isStarred}

/** With the gallery, which knows what follows a picture of it. */
export function start(shelf) {
  gallery = shelf;
  const dialog = $("viewer");
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => {
    $("viewer-figure").replaceChildren();
    if (!pictured().length) return; // Back has closed it, or what was done leads elsewhere
    if (history.state?.over) history.back();
    else location.hash = "#/gallery";
  };
  zoom.start(go);
  $("viewer-star").onclick = ({ target }) => { press(target, !pressed(target)); gallery.star(list[index].name, pressed(target)); };
  $("viewer-back").onclick = () => go(-1);
  $("viewer-next").onclick = () => go(1);
  dialog.onkeydown = (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
    if (event.key === "Delete") remove(list[index].name);
  };
}

const address = () => addressOf(list[index].name, beside?.name);
const named = (name) => ({ name, parameters: {} });

/**
 * Items of the gallery, the `shelf`, have `whole` parameters; those of a job are completed when they are looked at.
 * `compared` is the name of the one on the left.
 */
export function open(items, at, { shelf = false, compared = null } = {}) {
  [list, index, endless, beside] = [items, at, shelf, compared && named(compared)];
  const over = document.querySelector("main > section:not([hidden])").id.replace("view-", "");
  if (!pictured().length) history.pushState({ over }, "", address());
  present();
}

/** The pictures of a job, from this one on. */
export const openOf = (job, picture) =>
  open(ofJob(job), job.pictures.slice(0, picture).filter((each) => each.name && !each.gone).length);

/** As the address says: its picture, or none. */
export function follow() {
  const [name, other] = pictured();
  if (!name) return void $("viewer").close();
  if ($("viewer").open && list[index]?.name === name && beside?.name === other) return undefined;
  beside = other ? named(other) : null;
  const at = list.findIndex((each) => each.name === name);
  if (at < 0) [list, index, endless] = [[named(name)], 0, true];
  else index = at;
  return present();
}

function present() {
  show();
  if (!$("viewer").open) $("viewer").showModal();
  for (const part of [$("viewer"), $("viewer").querySelector("aside")]) part.scrollTop = 0; // not where another picture was left
  $("viewer").querySelector(".close").focus({ preventScroll: true }); // not what is first, the edge of a comparison: arrow keys would move it
}

/** The seed whose noise is mixed into a picture of a job counts up. */
const variedOf = ({ settings: { "Variation seed": first } }, at) => (first === undefined ? {} : { "Variation seed": String(Number(first) + at) });

/** The pictures of a job as the viewer's items. */
const ofJob = (job) => job.pictures.map((each, at) => [each, at]).filter(([each]) => each.name && !each.gone).map(([each, at]) => ({
  name: each.name,
  source: sources.ofJob(job.id),
  parameters: { ...parametersOf(job, each.seed), ...variedOf(job, at) },
}));

async function go(step) {
  if (endless && index + step >= list.length) await readOn();
  if (index + step < 0 || index + step >= list.length) return;
  index += step;
  refresh();
}

/** What follows in the gallery, once for however many ask for it meanwhile. */
async function readOn() {
  const last = list.at(-1);
  const found = await gallery.readOn(last.name);
  if (list.at(-1) === last) list = [...list, ...found];
}

/** Another picture in the same place of the history. */
function refresh() {
  history.replaceState(history.state, "", address());
  show();
}

function show() {
  const item = list[index];
  const { name, parameters } = item;
  const image = h("img", { src: imageUrl(name), alt: parameters.Prompt || "Picture" });
  const seen = [...document.querySelectorAll(`img[src^="${imageUrl(name)}?"]`)].find((each) => each.naturalWidth);
  image.style.background = `center / contain no-repeat url("${seen?.src ?? imageUrl(name, 512)}")`; // until the whole has come
  image.onload = () => {
    image.style.background = "none";
    zoom.redraw(); // its size is known now
  };
  image.onerror = () => $("viewer-figure").replaceChildren(h("p", { class: "empty" }, "This picture is no longer on the server."));
  item.source ??= sources.ofPicture(name);
  $("viewer-figure").replaceChildren(frame(item, image));
  zoom.set(null);
  $("viewer-zoom").hidden = image.parentElement !== $("viewer-figure");
  press($("viewer-star"), gallery.isStarred(name));
  $("viewer-back").disabled = index === 0;
  $("viewer-next").disabled = index === list.length - 1 && !endless;
  $("viewer-title").replaceChildren(...title());
  drawParameters(item);
  $("viewer-actions").replaceChildren(...actions(item));
  $("viewer-copies").replaceChildren(...copies(item));
  for (const each of beside ? [item, beside] : [item]) complete(each).then(() => { if (list[index] === item) drawParameters(item); });
  if (!$("viewer").contains(document.activeElement)) $("viewer").querySelector(".close").focus();
}

/** The picture alone, beside the one that was chosen, or after what it was made from. */
function frame({ source }, image) {
  const other = (src, alt) => h("img", { src, alt, onload: zoom.redraw });
  if (beside) return comparison(other(imageUrl(beside.name), "Left picture"), image, ["Left", "Right"], "results");
  return source ? comparison(other(source.images[0], "Before"), image, ["Before", "After"]) : image;
}

/** Which of how many: of the gallery, as far as the place in it is known, or of the job. */
function title() {
  if (beside) return ["Comparison"];
  const all = endless ? gallery.count() : list.length;
  return all > 1 && gallery.knows(list[0].name, endless) ? [h("span", { class: "unseen" }, "Picture "), `${index + 1} of ${all}`] : ["Picture"];
}

/** All, or those that differ. */
function drawParameters({ parameters }) {
  $("viewer-prompt").textContent = parameters.Prompt || "";
  const rows = beside ? differences(beside.parameters, parameters)
    : Object.entries(parameters).filter(([key, value]) => key !== "Prompt" && value !== "" && value != null);
  $("viewer-parameters").replaceChildren(...rows.flatMap(([key, value]) => [h("dt", {}, key), h("dd", { dir: "auto" }, String(value))]));
}

/** The item with all parameters of its picture, as the file tells them; asked for once. */
function complete(item) {
  item.whole ??= readWhole(item);
  return item.whole;
}

/** The one image after which its name would come. */
async function readWhole(item) {
  try {
    const { data: [found] } = await call("GET", `/v1/images?limit=1&before=${encodeURIComponent(`${item.name}~`)}`);
    if (found?.id === item.name) item.parameters = found.parameters;
  } catch { /* what is known already must do */ }
}

function actions(item) {
  const { name } = item;
  const path = imageUrl(name);
  const close = (view = "create") => { location.hash = `#/${view}`; $("viewer").close(); };
  return [
    h("a", { class: "button primary", href: path, download: name }, "Download"),
    $("upscale-field").hidden ? null : button("Upscale", () => { close(); upscale(name); }, { title: "2× as large" }),
    button("Use as input", async () => { close(); await useMade(path); }),
    button("Send to…", async () => { (await import("./send_to.js")).sendTo(path, close); }, { title: "Inpaint, extend or follow it" }),
    button("Vary", async () => (await import("./vary.js")).vary(item, path, complete, close), { title: $("variation-field").hidden ? "Start from this picture, with its settings and a new seed" : "Small changes, or a start from this picture" }),
    button("Load settings", async () => { await complete(item); close(); load(item.parameters, item.source); }),
    beside ? button("End comparison", () => { beside = null; refresh(); })
      : button("Compare with…", () => { close("gallery"); gallery.compareWith(name); }),
    button("Delete", () => remove(name), { class: "danger" }),
  ].filter(Boolean);
}

async function upscale(name) {
  try {
    const body = { image: name, upscale: 2, on_disconnect: "continue" };
    take(await call("POST", "/v1/images/upscale", body, { Prefer: "respond-async" }));
  } catch (error) {
    toast(error.message, "error");
  }
}

function copies(item) {
  const copyRequest = async (text, what, how) => {
    await complete(item);
    const request = requestOf(item.parameters);
    const files = toReplace(request);
    await copy(text(request), what, files && ` Put ${how} in the place of ${files}.`);
  };
  return [
    h("span", { class: "hint" }, "Copy"),
    button("Seed", () => copy(String(item.parameters.Seed ?? ""), "Seed"), { class: "small" }),
    button("Prompt", () => copy(item.parameters.Prompt ?? "", "Prompt"), { class: "small" }),
    button("JSON", () => copyRequest((request) => JSON.stringify(request, null, 2), "JSON", "data: URLs"), { class: "small" }),
    button("curl", () => copyRequest((request) => curlOf(request, hasKey()), "Command", "your files"), { class: "small" }),
  ].map((each) => { if (each.localName === "button") each.setAttribute("aria-label", `Copy ${each.textContent}`); return each; });
}

async function remove(name) {
  if (!await ask("Delete this picture?", "It is deleted from the server for good, also from its output folder.", "Delete")) return;
  try {
    await call("DELETE", imagePath(name));
  } catch (error) {
    if (error.status !== 404) return void toast(error.message, "error");
  }
  list = list.filter((each) => each.name !== name);
  beside = null;
  pictureGone(name);
  gallery.forget(name);
  if (!list.length) return void $("viewer").close();
  index = Math.min(index, list.length - 1);
  refresh();
}
