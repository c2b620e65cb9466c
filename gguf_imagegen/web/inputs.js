// The pictures to start from, and the mask: dropped, pasted, picked, or taken from what was made.

import { call } from "./api.js";
import { $, button, dataUrl, h, loadImage, toast } from "./dom.js";
import { paintMask } from "./mask.js";
import { named } from "./settings.js";
import { pictures as kept } from "./store.js";

let pictures = []; // data: URLs
let mask = null; // of the first one
let allowed = { most: 1, masks: true, name: "" };
let changed = () => {};
let apply = () => {};

/** `onChange(size)` when the pictures are others, with the size of a first one that has just come. */
export function start(onChange, applySettings) {
  [changed, apply] = [onChange, applySettings];
  $("pick").onclick = () => $("file").click();
  $("file").onchange = () => { addFiles([...$("file").files]); $("file").value = ""; };
  $("paint").onclick = async () => {
    try {
      mask = await paintMask(pictures[0], mask);
    } catch (error) {
      toast(error.message, "error");
    }
    update();
  };
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

/** What the chosen model takes: how many pictures, and whether a mask. */
export function allow(most, masks, name) {
  allowed = { most, masks, name };
  $("inputs-field").hidden = most === 0;
  draw();
}

export const given = () => pictures.slice(0, allowed.most);
export const givenMask = () => (allowed.masks && given().length === 1 ? mask : null);

/** A picture as input, in the place of the last one when there is no more room. */
export async function use(url) {
  if (!allowed.most) return toast(`${allowed.name} does not take pictures. Choose a model that does.`, "error");
  let image;
  try {
    image = await loadImage(url);
  } catch (error) {
    return toast(error.message, "error");
  }
  pictures = allowed.most > 1 ? [...pictures, url].slice(-allowed.most) : [url];
  mask = null;
  location.hash = "#/create";
  return update(pictures.length === 1 ? [image.naturalWidth, image.naturalHeight] : null);
}

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) {
      toast(`${file.name} is no picture.`, "error");
      continue;
    }
    const url = await dataUrl(file);
    if (allowed.most) await use(url);
    await offerSettings(url);
  }
}

/** A picture that carries its settings offers them; one that the server cannot read is not used. */
async function offerSettings(url) {
  try {
    const { info, parameters } = await call("POST", "/sdapi/v1/png-info", { image: url });
    if (info && allowed.most) return offer(url, parameters);
    if (info) return load(parameters);
    if (!allowed.most) toast(`${allowed.name} does not take pictures, and this one carries no settings.`, "error");
  } catch (error) {
    remove(url);
    toast(error.message, "error");
  }
  return undefined;
}

function offer(url, parameters) {
  const done = () => { $("offer").hidden = true; };
  $("offer").replaceChildren(h("span", {}, "This picture carries the settings that made it."),
    button("Load its settings", () => { remove(url); load(parameters); done(); }, { class: "small" }),
    button("Just the picture", done, { class: "small" }));
  $("offer").hidden = false;
  location.hash = "#/create";
  $("offer").scrollIntoView({ block: "nearest" });
}

function load(parameters) {
  apply(named(parameters));
  toast("The settings of the picture are loaded.");
}

function remove(url) {
  if (pictures[0] === url) mask = null;
  pictures = pictures.filter((each) => each !== url);
  $("offer").hidden = true;
  update();
}

function update(size = null) {
  kept.set("inputs", { pictures, mask });
  draw();
  changed(size);
}

function draw() {
  const { most, masks, name } = allowed;
  $("inputs-label").textContent = most > 1 ? "Pictures to edit or combine" : "Start from a picture";
  $("paint").hidden = given().length !== 1 || !masks;
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
    else if (link.startsWith(`${location.origin}/v1/images/files/`)) useMade(link);
  });
}

/** A picture that this server has made. */
export async function useMade(path) {
  const answer = await fetch(path).catch(() => null);
  if (!answer?.ok) return toast("This picture is not on the server any more.", "error");
  return use(await dataUrl(await answer.blob()));
}
