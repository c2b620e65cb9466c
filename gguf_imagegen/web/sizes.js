// The size of the next pictures: shapes that the model is at home with, and what is too large for it.

import { $, chip, press, say } from "./dom.js";

const ASPECTS = [["Square", 1], ["3:2", 1.5], ["2:3", 1 / 1.5], ["16:9", 16 / 9], ["9:16", 9 / 16]];
let model = null; // {id, meta}
let pictureSize = null; // of the picture to start from

/** The shapes of this model. */
export function offer(chosen) {
  model = chosen;
  $("width").max = $("height").max = chosen.meta.limits.max_side;
  $("sizes").replaceChildren(...ASPECTS.map(([name, aspect]) => sizeChip(name, sizeFor(aspect))));
}

const sizeChip = (name, size, id) => chip(name, () => setSize(size), { "data-size": size.join("x"), title: size.join(" × "), id });

/** A size of this aspect with the pixels of the model's own, or at most its limits. */
function sizeFor(aspect) {
  const { defaults, limits } = model.meta;
  const [width, height] = defaults.size.split("x").map(Number);
  const { size_multiple: multiple, max_side: side, max_pixels: limit } = limits;
  const near = (length) => Math.max(multiple, Math.min(Math.round(length / multiple), Math.floor(side / multiple)) * multiple);
  const pixels = Math.min(width * height, limit);
  return [near(Math.sqrt(pixels * aspect)), near(Math.sqrt(pixels / aspect))];
}

const setSize = ([width, height]) => { [$("width").value, $("height").value] = [width, height]; };

/** What is too large or fits best for the chosen model. */
export const limits = () => model.meta.limits;

/** As the picture to start from: its very size if the model is at home with it or so it is wanted `exactly`, else its aspect. */
export function fit([width, height], exactly = false) {
  const { defaults, limits: { max_side: side, max_pixels: limit } } = model.meta;
  const [own, other] = defaults.size.split("x").map(Number);
  const exact = exactly || (Math.max(width, height) <= side && Math.min(width, height) >= 64 && width * height <= Math.min(limit, 1.6 * own * other));
  pictureSize = exact ? [width, height] : sizeFor(width / height);
  setSize(pictureSize);
}

/** Which shape is chosen, one at most, and what the limits are; `starts` from a picture or not. */
export function show(starts) {
  $("size-of-picture")?.remove();
  const size = `${$("width").value}x${$("height").value}`;
  if (starts && pictureSize) $("sizes").prepend(sizeChip("As the picture", pictureSize, "size-of-picture"));
  const chosen = [...$("sizes").children].find((each) => each.dataset.size === size);
  for (const each of $("sizes").children) press(each, each === chosen);
  const { max_side: side, max_pixels: pixels, size_multiple: multiple } = model.meta.limits;
  const large = tooLarge();
  $("size-hint").className = large ? "error" : "hint";
  say($("size-hint"), large ? `Too large for ${model.id}: at most ${side} a side, and ${Math.floor(Math.sqrt(pixels))} × ${Math.floor(Math.sqrt(pixels))} in all.`
    : `Up to ${side}; multiples of ${multiple} are fastest.`);
}

/** The side to make smaller; null if the model can do this size. */
export function tooLarge() {
  const { max_side: side, max_pixels: pixels } = model.meta.limits;
  const [longer, other] = [$("width"), $("height")].sort((one, another) => another.value - one.value);
  return longer.value > side || longer.value * other.value > pixels ? longer : null;
}
