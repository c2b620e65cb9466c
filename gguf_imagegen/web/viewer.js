// One picture, full, with everything that made it and what can be done with it.

import { call, hasKey, imagePath, imageUrl } from "./api.js";
import { apply, load } from "./create.js";
import { $, ask, button, copy, h, press, pressed, toast, toCreate } from "./dom.js";
import { replace, useMade } from "./inputs.js";
import { pictureGone, take } from "./jobs.js";
import { curlOf, named, ofJob as parametersOf, requestOf, toReplace } from "./settings.js";
import * as sources from "./sources.js";

let list = []; // items {name, parameters, source, whole}; `whole` tells when the parameters are all there
let index = 0;
let gallery = null; // {forget, readOn, count}

/** With the gallery, which knows what follows a picture of it. */
export function start(shelf) {
  gallery = shelf;
  const dialog = $("viewer");
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => {
    $("viewer-figure").replaceChildren();
    if (addressed() === null) return; // Back has closed it, or what was done leads elsewhere
    if (history.state?.over) history.back();
    else location.hash = "#/gallery";
  };
  $("viewer-zoom").onclick = () => actualSize(!pressed($("viewer-zoom")));
  $("viewer-figure").ondblclick = $("viewer-zoom").onclick;
  $("viewer-back").onclick = () => go(-1);
  $("viewer-next").onclick = () => go(1);
  dialog.onkeydown = (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
    if (event.key === "Delete") remove(list[index].name);
  };
}

let endless = false;

/** The picture that the page's address names; null if it names none. */
export function addressed() {
  const [, name] = location.hash.match(/^#\/picture\/(.+)$/) ?? [];
  return name ? decodeURIComponent(name) : null;
}

const address = (name) => `#/picture/${encodeURIComponent(name)}`;

/** Items of the gallery have `whole` parameters; those of a job are completed when they are looked at. */
export function open(items, at, { shelf = false } = {}) {
  [list, index, endless] = [items, at, shelf];
  const over = document.querySelector("main > section:not([hidden])").id.replace("view-", "");
  if (addressed() === null) history.pushState({ over }, "", address(list[index].name));
  present();
}

/** As the address says: its picture, or none. */
export function follow() {
  const name = addressed();
  if (name === null) return void $("viewer").close();
  if ($("viewer").open && list[index]?.name === name) return undefined;
  const at = list.findIndex((each) => each.name === name);
  if (at < 0) [list, index, endless] = [[{ name, parameters: {} }], 0, true];
  else index = at;
  return present();
}

function present() {
  show();
  if (!$("viewer").open) $("viewer").showModal();
  $("viewer").querySelector(".close").focus(); // not what is first, the edge of a comparison: arrow keys would move it
}

/** The pictures of a job as the viewer's items. */
export const ofJob = (job) => job.pictures.filter((each) => each.name && !each.gone).map((each) => ({
  name: each.name,
  source: sources.ofJob(job.id),
  parameters: parametersOf(job, each.seed),
}));

async function go(step) {
  if (endless && index + step >= list.length) list = [...list, ...await gallery.readOn(list.at(-1).name)];
  if (index + step < 0 || index + step >= list.length) return;
  index += step;
  history.replaceState(history.state, "", address(list[index].name));
  show();
}

function show() {
  const item = list[index];
  const { name, parameters } = item;
  const image = h("img", { src: imageUrl(name), alt: parameters.Prompt || "Picture" });
  image.style.background = `center / contain no-repeat url("${imageUrl(name, 512)}")`; // until the whole has come
  image.onload = () => {
    image.style.background = "none";
    actualSize(pressed($("viewer-zoom"))); // its size is known now
  };
  image.onerror = () => $("viewer-figure").replaceChildren(h("p", { class: "empty" }, "This picture is no longer on the server."));
  item.source ??= sources.ofPicture(name);
  actualSize(false);
  $("viewer-zoom").hidden = Boolean(item.source);
  $("viewer-figure").replaceChildren(item.source ? comparison(image, item.source.images[0]) : image);
  $("viewer-back").disabled = index === 0;
  $("viewer-next").disabled = index === list.length - 1 && !endless;
  $("viewer-title").textContent = title();
  drawParameters(parameters);
  $("viewer-actions").replaceChildren(...actions(item));
  $("viewer-copies").replaceChildren(...copies(item));
  complete(item).then(() => { if (list[index] === item) drawParameters(item.parameters); });
  if (!$("viewer").contains(document.activeElement)) $("viewer").querySelector(".close").focus();
}

/** One pixel of the picture on one of the screen, to scroll in; else as large as fits. */
function actualSize(on) {
  press($("viewer-zoom"), on);
  $("viewer-figure").classList.toggle("actual", on);
  const image = $("viewer-figure").querySelector(":scope > img");
  if (image) image.style.width = on && image.naturalWidth ? `${image.naturalWidth / devicePixelRatio}px` : "";
}

/** Which of how many: of the gallery, as far as the place in it is known, or of the job. */
function title() {
  const all = endless ? gallery.count() : list.length;
  return all > 1 && gallery.knows(list[0].name, endless) ? `Picture ${index + 1} of ${all}` : "Picture";
}

function drawParameters(parameters) {
  $("viewer-prompt").textContent = parameters.Prompt || "";
  const rows = Object.entries(parameters).filter(([key, value]) => key !== "Prompt" && value !== "" && value != null);
  $("viewer-parameters").replaceChildren(...rows.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, String(value))]));
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

/** Before on the left, after on the right, with an edge between them to move. */
function comparison(after, source) {
  const before = h("img", { src: source, alt: "Before" });
  const line = h("span", { class: "edge" });
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Where the picture before ends, and the new one begins" });
  slider.oninput = () => {
    after.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    line.style.left = `${slider.value}%`;
  };
  slider.oninput();
  return h("div", { class: "compare" }, h("div", { class: "pair" }, before, after, line),
    h("label", {}, h("span", { class: "ends" }, h("span", {}, "Before"), h("span", {}, "After")), slider));
}

function actions(item) {
  const { name } = item;
  const path = imageUrl(name);
  const close = () => { location.hash = "#/create"; $("viewer").close(); };
  const vary = async () => {
    await complete(item);
    close();
    apply(named({ ...item.parameters, Seed: undefined }));
    replace();
    await useMade(path);
    toCreate($("prompt"));
  };
  return [
    h("a", { class: "button primary", href: path, download: name }, "Download"),
    $("upscale-field").hidden ? null : button("Upscale", () => { close(); upscale(name); }, { title: "2× as large" }),
    button("Use as input", async () => { close(); await useMade(path); }),
    button("Send to…", async () => { (await import("./send_to.js")).sendTo(path, close); }, { title: "Inpaint, extend or follow it" }),
    button("Vary", vary, { title: "Start from this picture, with its settings and a new seed" }),
    button("Load settings", async () => { await complete(item); close(); load(item.parameters, item.source); }),
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
  pictureGone(name);
  gallery.forget(name);
  if (!list.length) return void $("viewer").close();
  index = Math.min(index, list.length - 1);
  history.replaceState(history.state, "", address(list[index].name));
  show();
}
