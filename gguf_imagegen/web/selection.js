// Several pictures of the gallery at once: stars, which this browser remembers, and a selection to save or delete.

import { ApiError, call, imagePath, imageUrl } from "./api.js";
import { $, ask, button, h, press, pressed, toast } from "./dom.js";
import { pictureGone } from "./jobs.js";
import { kept } from "./store.js";

const chosen = new Set(); // names
let forget = () => {};
let changed = () => {};

/** `onDelete(name)` for each picture that was deleted, `onChange()` when other pictures are to be shown. */
export function start(onDelete, onChange) {
  [forget, changed] = [onDelete, onChange];
  $("select").onclick = () => begin(!pressed($("select")));
  $("selected-star").onclick = () => { for (const name of chosen) star(name, true); begin(false); };
  $("selected-save").onclick = save;
  $("selected-delete").onclick = remove;
}

const stars = () => kept.get("stars", []);
export const isStarred = (name) => stars().includes(name);

function star(name, on) {
  kept.set("stars", on ? [...new Set([...stars(), name])] : stars().filter((each) => each !== name));
  document.querySelectorAll(`#gallery [data-name="${CSS.escape(name)}"] .star`).forEach((each) => press(each, on));
  changed();
}

/** The button of a tile that keeps a picture in mind. */
export function starButton(name, text) {
  return button("★", ({ target }) => star(name, !pressed(target)), { class: "star", "aria-pressed": String(isStarred(name)), "aria-label": `Star: ${text}` });
}

/** Whether a click on this picture selects it; it does then. */
export function takes(element, name) {
  if (!pressed($("select"))) return false;
  const on = !chosen.has(name);
  if (on) chosen.add(name);
  else chosen.delete(name);
  press(element, on);
  tell();
  return true;
}

function begin(on) {
  press($("select"), on);
  chosen.clear();
  for (const each of document.querySelectorAll("#gallery .tile")) {
    if (on) press(each, false);
    else each.removeAttribute("aria-pressed");
  }
  tell();
}

function tell() {
  $("selected").hidden = !pressed($("select"));
  $("selected-count").textContent = `${chosen.size} selected`;
  for (const each of $("selected").querySelectorAll("button")) each.disabled = !chosen.size;
}

function save() {
  for (const name of chosen) h("a", { href: imageUrl(name), download: name }).click();
  begin(false);
}

async function remove() {
  const many = `${chosen.size} picture${chosen.size > 1 ? "s" : ""}`;
  if (!await ask(`Delete ${many}?`, "This deletes the files on the server for good.", "Delete")) return;
  for (const name of [...chosen]) {
    try {
      await call("DELETE", imagePath(name));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 404) return void toast(error.message, "error");
    }
    pictureGone(name);
    forget(name);
  }
  begin(false);
}
