// Several pictures of the gallery at once: stars, which this browser remembers, and a selection to save or delete.

import { ApiError, call, imagePath, imageUrl } from "./api.js";
import { $, ask, button, h, press, pressed, toast } from "./dom.js";
import { pictureGone } from "./jobs.js";
import { kept } from "./store.js";

const chosen = new Set(); // names
let last = ""; // name of the picture that was clicked last
let forget = () => {};
let changed = () => {};
let compare = () => {};
let second = false; // whether the next picture is the one to compare with

/** `onDelete(name)` for each picture that was deleted, `onChange()` when other pictures are to be shown, `onCompare(left, right)` for two. */
export function start(onDelete, onChange, onCompare) {
  [forget, changed, compare] = [onDelete, onChange, onCompare];
  $("select").onclick = () => begin(!pressed($("select")));
  $("select").disabled = false;
  $("selected-star").onclick = () => { for (const name of chosen) star(name, true); begin(false); };
  $("selected-save").onclick = save;
  $("selected-compare").onclick = compareChosen;
  $("selected-delete").onclick = remove;
  $("view-gallery").addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !pressed($("select"))) return;
    begin(false);
    $("select").focus();
  });
}

let stars = null; // names, as they were kept last; null until somebody asks

export function isStarred(name) {
  stars ??= new Set(kept.get("stars", []));
  return stars.has(name);
}

export function star(name, on) {
  const others = kept.get("stars", []).filter((each) => each !== name); // another tab may have starred more
  kept.set("stars", on ? [...others, name] : others);
  stars = null;
  document.querySelectorAll(`#gallery [data-name="${CSS.escape(name)}"] .star`).forEach((each) => press(each, on));
  changed();
}

/** The button of a tile that keeps a picture in mind, the one that `name()` tells. */
export const starButton = (name) => button("★", ({ target }) => star(name(), !pressed(target)), { class: "star" });

/** Whether the two buttons of a picture's tile are pressed; the tile can only be while one selects. */
export function mark(tile, starred, name) {
  press(starred, isStarred(name));
  if (pressed($("select"))) press(tile, chosen.has(name));
  else tile.removeAttribute("aria-pressed");
}

/** The picture that is chosen next is shown beside this one. */
export function compareWith(name) {
  begin(true);
  chosen.add(name);
  second = true;
  const tile = tileOf(name);
  if (tile) press(tile, true);
  tell();
}

const tileOf = (name) => document.querySelector(`#gallery [data-name="${CSS.escape(name)}"] .tile`);

function compareChosen() {
  const [left, right] = chosen;
  begin(false);
  compare(left, right);
}

/** Whether a click on this picture selects it; it does then, and with Shift those of the list from the last one on. */
export function takes(name, list) {
  if (!pressed($("select"))) return false;
  const on = !chosen.has(name);
  const [from, to] = [list.indexOf(last), list.indexOf(name)].sort((one, other) => one - other);
  for (const each of from < 0 ? [name] : list.slice(from, to + 1)) {
    if (on) chosen.add(each);
    else chosen.delete(each);
    const tile = tileOf(each);
    if (tile) press(tile, on);
  }
  last = name;
  if (second && chosen.size > 1) compareChosen();
  else tell();
  return true;
}

function begin(on) {
  const within = $("selected").contains(document.activeElement);
  press($("select"), on);
  chosen.clear();
  last = "";
  second = false;
  for (const each of document.querySelectorAll("#gallery .tile")) {
    if (on) press(each, false);
    else each.removeAttribute("aria-pressed");
  }
  tell();
  if (!on && within) $("select").focus();
}

function tell() {
  $("selected").hidden = !pressed($("select"));
  $("selected-count").textContent = second ? "Choose the picture to compare with." : `${chosen.size} selected`;
  for (const each of $("selected").querySelectorAll("button")) each.disabled = !chosen.size;
  $("selected-compare").disabled = chosen.size !== 2;
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
