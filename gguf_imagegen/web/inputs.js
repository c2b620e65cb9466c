// The pictures to start from, and the mask: dropped, pasted, picked, or taken from what was made.

import { at, call } from "./api.js";
import { $, button, dataUrl, h, loadImage, toast, toCreate } from "./dom.js";
import { pictures as kept } from "./store.js";

let pictures = []; // data: URLs
let mask = null; // of the first one
let allowed = { most: 1, masks: true, name: "", pixels: Infinity };
let changed = () => {};
let load = () => {};

/** `onChange(size, exactly)` when the pictures are others, with the size of a first one that has just come, and whether no other will do. */
export function start(onChange, loadSettings) {
  [changed, load] = [onChange, loadSettings];
  $("pick").onclick = () => $("file").click();
  $("file").onchange = () => { addFiles([...$("file").files]); $("file").value = ""; };
  $("paint").onclick = async () => {
    try {
      const { paintMask } = await import("./mask.js"); // few paint one
      mask = await paintMask(pictures[0], mask);
    } catch (error) {
      toast(error.message, "error");
    }
    update();
  };
  $("extend").onclick = extend;
  takeDrops();
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    addFiles([...event.clipboardData.files]);
  });
  kept.get("inputs", null).then((before) => {
    if (!before || pictures.length) return;
    ({ pictures, mask } = before);
    draw();
    changed(null);
  });
}

/** The picture on a larger canvas, whose new border is to be drawn. */
async function extend() {
  try {
    const { extendPicture } = await import("./extend.js");
    const made = await extendPicture(pictures[0]);
    if (!made) return;
    pictures = [made.image];
    mask = made.mask;
    update(made.size, true);
  } catch (error) {
    toast(error.message, "error");
  }
}

/** What the chosen model takes: how many pictures, of how many pixels, and whether a mask. */
export function allow(most, masks, name, pixels) {
  allowed = { most, masks, name, pixels };
  $("inputs-field").hidden = most === 0;
  draw();
}

export const given = () => pictures.slice(0, allowed.most);
export const givenMask = () => (allowed.masks && given().length === 1 ? mask : null);

const held = () => ({ images: pictures, mask });

/** Other inputs, or none; what was there before. */
export function replace({ images, mask: painted } = { images: [], mask: null }) {
  const before = held();
  [pictures, mask] = [images, painted];
  $("offer").hidden = true;
  update();
  return before;
}

/** A picture as input, in the place of the last one when there is no more room; whether it can be one. */
export async function use(url) {
  const { most, name } = allowed;
  let image;
  try {
    if (!most) throw new Error(`${name} does not take pictures. Choose a model that does.`);
    image = await loadImage(url);
    checkSize(image);
  } catch (error) {
    toast(error.message, "error");
    return false;
  }
  if (most > 1 && pictures.length >= most) toast(`${name} takes ${most} pictures: this one replaces the last.`);
  pictures = [...pictures.slice(0, most - 1), url];
  mask = null;
  location.hash = "#/create";
  update(pictures.length === 1 ? [image.naturalWidth, image.naturalHeight] : null);
  return true;
}

function checkSize({ naturalWidth: width, naturalHeight: height }) {
  const { pixels } = allowed;
  if (width * height <= pixels) return;
  throw new Error(`This picture has ${megapixels(width * height)}; this server takes ${megapixels(pixels)}. Make it smaller first.`);
}

const megapixels = (count) => `${count >= 1e7 ? Math.round(count / 1e6) : (count / 1e6).toPrecision(2)} megapixels`;

async function addFiles(files) {
  const { most, name } = allowed;
  const found = files.filter((file) => file.type.startsWith("image/"));
  for (const file of files.filter((each) => !found.includes(each))) toast(`${file.name} is not a picture.`, "error");
  const room = most > 1 ? Math.max(1, most - pictures.length) : 1;
  const surplus = most ? found.splice(room) : [];
  if (surplus.length) toast(`${name} takes ${most} picture${most > 1 ? "s" : ""}. Left out: ${surplus.map((file) => file.name).join(", ")}.`, "error");
  for (const file of found) await add(await dataUrl(file));
}

async function add(url) {
  const before = held();
  if (!allowed.most || await use(url)) await offerSettings(url, before);
}

/** A picture that carries its settings offers them; one that the server cannot read is not used. */
async function offerSettings(url, before) {
  try {
    const { text, parameters } = await call("POST", "/v1/images/info", { image: url });
    if (text && allowed.most) return offer(url, parameters, before);
    if (text) return loadTold(parameters);
    if (!allowed.most) toast(`${allowed.name} does not take pictures, and this one carries no settings.`, "error");
  } catch (error) {
    takeBack(url, before);
    toast(error.message, "error");
  }
  return undefined;
}

function offer(url, parameters, before) {
  $("offer").replaceChildren(h("span", {}, "This picture contains its settings."),
    button("Load its settings", () => { takeBack(url, before); loadTold(parameters); }, { class: "small" }),
    button("Just the picture", () => { $("offer").hidden = true; $("prompt").focus(); }, { class: "small" }));
  $("offer").hidden = false;
  location.hash = "#/create";
  $("offer").scrollIntoView({ block: "nearest" });
}

function loadTold(parameters) {
  toast("Settings loaded.");
  load(parameters);
}

/** The inputs as they were before this one, unless they have changed since. */
function takeBack(url, before) {
  if (pictures.at(-1) === url) replace(before);
  else remove(url);
}

function remove(url) {
  if (pictures[0] === url) mask = null;
  pictures = pictures.filter((each) => each !== url);
  $("offer").hidden = true;
  update();
}

function update(size = null, exactly = false) {
  kept.set("inputs", { pictures, mask });
  draw();
  changed(size, exactly);
}

function draw() {
  const { most, masks, name } = allowed;
  $("inputs-label").textContent = most > 1 ? "Pictures to edit or combine" : "Start from a picture";
  $("paint").hidden = $("extend").hidden = given().length !== 1 || !masks;
  $("paint").textContent = mask ? "Change the mask…" : "Paint a mask…";
  $("pick").textContent = pictures.length && most > 1 ? "Add…" : pictures.length ? "Choose another…" : "Choose…";
  $("inputs").replaceChildren(...pictures.map((url, index) => thumbnail(url, index, index < most)));
  $("inputs").hidden = !pictures.length;
  const room = most > 1 ? `Up to ${most} pictures. ` : "";
  const surplus = `${name} takes ${most} picture${most > 1 ? "s" : ""}: the pale ones are not used.`;
  $("inputs-hint").textContent = pictures.length > most ? surplus : pictures.length ? room : `${room}Or drop or paste one.`;
}

function thumbnail(url, index, used) {
  const away = button("×", () => { remove(url); $("pick").focus(); }, { "aria-label": `Remove picture ${index + 1}` });
  return h("li", { class: used ? "thumb" : "thumb unused" }, h("img", { src: url, alt: `Picture ${index + 1}` }),
    givenMask() ? h("img", { src: mask, alt: "Its mask", class: "mask" }) : null, away);
}

/** The whole page takes drops: files, and pictures of this page itself. */
function takeDrops() {
  const wanted = (event) => ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types.includes(type))
    && !document.querySelector("dialog[open]");
  const over = (on) => { $("drop").hidden = !on; };
  document.addEventListener("dragover", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    over(false);
    const link = event.dataTransfer.getData("text/uri-list");
    if (event.dataTransfer.files.length) addFiles([...event.dataTransfer.files]);
    else if (link.startsWith(`${location.origin}${at("/v1/images/files/")}`)) useMade(link.replace(/\?width=\d+$/, ""));
  });
}

/** A picture that this server has made. */
export async function useMade(path) {
  const answer = await fetch(path).catch(() => null);
  if (!answer?.ok) return toast("This picture is no longer on the server.", "error");
  if (await use(await dataUrl(await answer.blob()))) toCreate($("inputs-field"));
  return undefined;
}
