// The request for a set: prompts as lines, and the settings to combine; how many pictures that makes, and how long they take.

import { ApiError, call } from "./api.js";
import { $, button, chip, h, press, pressed, say, seconds } from "./dom.js";
import { style } from "./late_style.js";

const PAUSE = 500; // ms without a change before the server is asked
const AXES = [ // in the order of the server: [field, label, placeholder]
  ["cfg_scale", "CFG scales", "1, 2.5, 4"], ["steps", "Steps", "4, 8, 12"], ["seed", "Seeds", "1, 2, 3 or 1-4; -1 is a random one"],
  ["variation_strength", "Variation strengths", "0, 0.2, 0.4"],
];
const PARTS = ["cfg_scale", "variation_strength"]; // may be no whole numbers
const MOST = 1000; // values of a range
let form = {}; // {models(), request(), fault()}
let timer = null;
let asking = null;

export async function open(wishes) {
  form = wishes;
  await style();
  if (!$("setter")) document.body.append(make());
  const field = $("set-prompts");
  const { prompt } = form.request();
  if (field.value === (field.dataset.filled ?? "")) field.value = field.dataset.filled = prompt.replaceAll("\n", " "); // else it was written by hand
  offerChips();
  $("setter").showModal();
  field.focus();
  forecast();
}

const make = () => h("dialog", { id: "setter", "aria-labelledby": "set-title" },
  h("div", { class: "bar" }, h("h2", { id: "set-title" }, "Set or grid"), button("×", () => $("setter").close(), { class: "close icon", "aria-label": "Close" })),
  h("form", { class: "group", novalidate: true, oninput: forecast, onsubmit: (event) => { event.preventDefault(); send(); } },
    h("p", { class: "hint" }, "One picture for each combination, with all other settings as in the form."),
    h("label", {}, "Prompts, one per line", h("textarea", { id: "set-prompts", rows: 4, dir: "auto" })),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "set-expand" }), " Expand {red|blue} and __wildcards__"),
    h("div", { class: "pair-of" }, ...AXES.map(([name, label, placeholder]) => h("label", {}, label, h("input", { id: `set-${name}`, placeholder, inputmode: "text" })))),
    h("fieldset", {}, h("legend", {}, "Samplers"), h("div", { class: "chips", id: "set-sampler" })),
    h("fieldset", { id: "set-models" }, h("legend", {}, "Models"), h("div", { class: "chips", id: "set-model" })),
    h("label", {}, "Limit (a random selection)", h("input", { type: "number", id: "set-n", min: 1, placeholder: "All", inputmode: "numeric" })),
    h("p", { class: "error", id: "set-error", role: "alert" }),
    h("div", { class: "bar" }, h("p", { class: "hint", id: "set-hint", role: "status" }), h("button", { type: "submit", class: "primary", id: "set-send" }, "Generate all"))));

/** The samplers of the chosen model, and the models that are here; those that were pressed stay so. */
function offerChips() {
  const samplers = [...$("sampler").options].map(({ value }) => value);
  const models = form.models().map(({ id }) => id);
  for (const [place, names] of [[$("set-sampler"), samplers], [$("set-model"), models]]) {
    const down = chosen(place);
    place.replaceChildren(...names.map((name) => toggle(name, down.includes(name))));
  }
  $("set-models").hidden = models.length < 2;
}

function toggle(name, down) {
  const made = chip(name, () => press(made, !pressed(made)), { "data-value": name, "aria-pressed": String(down) });
  return made;
}

const chosen = (place) => [...place.children].filter(pressed).map((each) => each.dataset.value);

/** "1, 2, 5-7" as numbers. Throws what is wrong with it. */
function numbers(text, label, whole) {
  return text.split(/[\s,;]+/).filter(Boolean).flatMap((part) => {
    const [, from, to] = part.match(/^(\d+)-(\d+)$/) ?? [];
    if (from && Number(to) - from < MOST) return Array.from({ length: Math.max(0, to - from + 1) }, (_, index) => Number(from) + index);
    const number = Number(part);
    if (!Number.isFinite(number) || (whole && !Number.isInteger(number))) throw new ApiError(400, `${label}: "${part}" is not a ${whole ? "whole " : ""}number.`);
    return [number];
  });
}

/** The request. Throws what is wrong with it. */
function wanted() {
  const { prompt: _, n: __, stream_options: ___, on_disconnect: ____, ...shared } = form.request();
  const prompts = $("set-prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!prompts.length) throw new ApiError(400, "Enter a prompt.");
  if (form.fault()) throw new ApiError(400, form.fault()[1] || "The size is too large for this model.");
  const matrix = Object.fromEntries(AXES.map(([name, label]) => [name, numbers($(`set-${name}`).value, label, !PARTS.includes(name))]));
  Object.assign(matrix, { sampler: chosen($("set-sampler")), model: chosen($("set-model")) });
  return {
    ...shared, prompts, expand: $("set-expand").checked, n: Number($("set-n").value) || undefined,
    matrix: Object.fromEntries(Object.entries(matrix).filter(([, values]) => values.length)),
  };
}

function forecast() {
  clearTimeout(timer);
  asking?.abort();
  timer = setTimeout(ask, PAUSE);
}

async function ask() {
  asking = new AbortController();
  try {
    const answer = await call("POST", "/v1/images/sets", { ...wanted(), dry_run: true }, {}, asking.signal);
    const time = answer.seconds === null ? "" : `, about ${seconds(answer.seconds + (answer.load_seconds ?? 0))}`;
    say($("set-hint"), `${answer.n} picture${answer.n > 1 ? "s" : ""}${time}${answer.fits ? "" : "; not all fit into memory"}`);
    say($("set-error"), "");
  } catch (error) {
    if (error.name === "AbortError") return;
    say($("set-hint"), "");
    say($("set-error"), error.message);
  }
}

async function send() {
  clearTimeout(timer);
  asking?.abort();
  $("set-send").disabled = true;
  try {
    const made = await call("POST", "/v1/images/sets", wanted());
    const { show } = await import("./set_cards.js");
    $("setter").close();
    show(made);
  } catch (error) {
    say($("set-error"), error.message);
  }
  $("set-send").disabled = false;
}
