// What a picture takes beside its model: LoRAs, textual inversions, a ControlNet. Their fields are read when there is something to choose.

import { $ } from "./dom.js";
import { kept } from "./store.js";

const TAG = /(?:,\s*)?<lora:([^<>]+?)(?::([+-]?\d*\.?\d+))?>/g;
let found = { loras: [], embeddings: [], control_nets: [] }; // files that can be used
let fields = null; // the module that draws them
let family = "";
let changed = () => {};
let weights = Object.entries(kept.get("loras", {})).filter(([, weight]) => Number(weight)); // [name, weight] of the chosen LoRAs

/** `onChange` when something was chosen from here, or put into a prompt. */
export function start(onChange) {
  changed = onChange;
}

/** New from the server. */
export function offer({ loras, embeddings, control_nets: nets }) {
  const usable = (list) => list.filter((each) => !each.fault);
  found = { loras: usable(loras), embeddings: usable(embeddings), control_nets: usable(nets) };
  draw();
}

/** For a model of this family. */
export function show(name) {
  family = name;
  draw();
}

async function draw() {
  const fitting = (list) => list.filter((each) => each.family === family.split("-")[0] && each.family !== "sdxl");
  const offered = { loras: found.loras, embeddings: fitting(found.embeddings), nets: fitting(found.control_nets) };
  if (!fields && !Object.values(offered).some((list) => list.length)) return;
  fields ??= await import("./addon_fields.js").catch(() => null); // tried again with the next change
  fields?.draw($("addons"), offered, { weights, weigh, changed: () => changed() });
}

/** The weight of a LoRA; null takes it out. */
function weigh(name, weight) {
  const others = weights.filter(([each]) => each !== name);
  const at = weights.findIndex(([each]) => each === name);
  weights = weight === null ? others : at < 0 ? [...weights, [name, weight]] : weights.with(at, [name, weight]);
  kept.set("loras", Object.fromEntries(weights));
  draw();
  changed();
}

const isHere = (name) => found.loras.some((each) => each.name === name);

/** The field `lora` of a request, with those that a prompt names. */
export function loras(named = []) {
  const list = [...new Map([...weights, ...named])].filter(([name, weight]) => isHere(name) && Number(weight)).map(([name, weight]) => ({ name, scale: Number(weight) }));
  return list.length ? list : undefined;
}

/** A prompt as the fields `prompt` and `lora` of a request: `<lora:NAME:WEIGHT>` goes from the one to the other. */
export function split(text) {
  const named = [];
  const prompt = text.replace(TAG, (tag, name, weight = "1") => (isHere(name) && named.push([name, weight]) ? "" : tag));
  return { prompt: named.length ? prompt.replace(/^[\s,]+/, "") : text, lora: loras(named) };
}

/** These and no others; the names of those that are not here. */
export function chooseLoras(wanted = []) {
  weights = wanted.filter(({ name }) => isHere(name)).map(({ name, scale }) => [name, scale]);
  kept.set("loras", Object.fromEntries(weights));
  draw();
  return wanted.map(({ name }) => name).filter((name) => !isHere(name));
}

/** A picture, as a data: URL, for the ControlNet. */
export const usePicture = (url) => fields?.usePicture(url);

/** The field `control` of a request. */
export const control = () => fields?.control();
export const lacksPicture = () => control()?.image === null;
