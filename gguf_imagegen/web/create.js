// The form: what to make, with which model. It shows what the chosen model can do and remembers everything.

import * as addons from "./addons.js";
import { ApiError, call } from "./api.js";
import { $, chip, h, needWords, press, say, toast, toCreate } from "./dom.js";
import * as inputs from "./inputs.js";
import * as jobs from "./jobs.js";
import * as prompt from "./prompt.js";
import * as seed from "./seed.js";
import { named, nearest, startOf } from "./settings.js";
import * as sizes from "./sizes.js";
import * as sources from "./sources.js";
import { kept } from "./store.js";

const REMEMBERED = ["prompt", "negative", "count", "upscale"];
const PER_MODEL = [
  "width", "height", "steps", "cfg", "guidance", "sampler", "schedule", "step_cache", "decoder", "strength", "clip_skip", "eta", "flow_shift",
  "hires_width", "hires_height", "hires_steps", "hires_strength", "hires_upscaler",
];
const UNSET = { hires_upscaler: "latent", hires_strength: 0.7, clip_skip: "", eta: "", flow_shift: "" }; // empty is as the model has it
const LATENT = ["latent", "latent_nearest", "latent_bicubic", "lanczos", "nearest"]; // upscalers that need no file
const EXAMPLES = ["A lighthouse at dusk, watercolour", "Portrait of a fox, golden hour", "A bowl of ramen, studio photo"];
const HERE = ["loaded", "loading", "ready"];
let models = [];
let loras = null; // and upscalers, as JSON; null until the server was heard of
let heard = () => {};
const offered = new Promise((resolve) => { heard = resolve; });
let mine = null; // the last job of this form, until the next one follows it
let sending = false; // a form is sent once, however often Generate is pressed meanwhile
let unanswered = false; // whether the error that is shown is the server's silence

const idOf = (name) => name.split(":")[0];
const model = () => models.find((each) => each.id === idOf($("model").value));

export function start() {
  const form = $("create");
  form.onsubmit = (event) => { event.preventDefault(); generate(); };
  form.oninput = () => { remember(); show(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.repeat && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      location.hash = "#/create";
      generate(document.activeElement === $("prompt"));
    }
  });
  $("generate").onclick = (event) => { if (event.detail > 1) event.preventDefault(); }; // of a double click
  $("model").oninput = (event) => {
    event.stopPropagation(); // the fields still have the values of the model before
    kept.set("model", $("model").value);
    fill();
  };
  $("defaults").onclick = () => { fill(true); remember(); };
  seed.start();
  for (const name of REMEMBERED) $(name).value = kept.get(name, $(name).value);
  $("more").open = kept.get("more", false);
  $("more").ontoggle = () => kept.set("more", $("more").open);
  $("more").querySelector("summary").onclick = () => $("more").addEventListener("toggle", () => $("more").open && $("more").scrollIntoView(), { once: true });
  inputs.start((size) => { if (size) { sizes.fit(size); remember(); } show(); }, load);
  sources.start();
  prompt.start(() => { remember(); show(); });
  addons.start(() => { remember(); show(); });
  jobs.listen((job, event) => { if (event.type === "online" && unanswered) complain(""); });
  jobs.listen((job, event) => { if (job && event.type === "ended") goOn(job); });
}

/** New from the server: the models, and the files beside them. */
export function offer(list, found) {
  models = list.filter((each) => HERE.includes(each.meta.state) || each.meta.quants.some((quant) => quant.on_disk));
  const before = $("model").value;
  const options = models.flatMap(optionsOf);
  if (JSON.stringify(options) !== $("model").dataset.options) {
    $("model").dataset.options = JSON.stringify(options);
    $("model").replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
    const own = (models.find((each) => each.meta.default) || models[0])?.id;
    const found = [before, kept.get("model", ""), own].map(optionOf).find(Boolean);
    if (found) $("model").value = found;
  }
  offerAddons(found.loras, found.upscalers.map(({ name }) => name));
  addons.offer(found);
  prompt.offer(found);
  if (model() && $("model").value !== before) fill();
  else show();
  heard();
}

/** A model by its id, or by each quantisation that is here where there are several; it takes the first itself. */
function optionsOf({ id, meta }) {
  const here = meta.quants.filter((quant) => quant.quant && quant.on_disk).map((quant) => quant.name);
  const names = here.length > 1 ? here : [id];
  return names.map((name) => [name, name + (meta.state === "loaded" && names.length === 1 ? " (in memory)" : "")]);
}

/** The option for a model of this name, with or without a quantisation, as near as there is one. */
function optionOf(name) {
  const names = [...$("model").options].map((option) => option.value);
  return name && (names.find((each) => each === name) ?? names.find((each) => idOf(each) === idOf(name)));
}

/** What a LoRA's file says it was made for. */
const about = ({ base_model }) => (base_model ? `made for ${base_model}` : "");

function offerAddons(offered, upscalers) {
  if (JSON.stringify([offered, upscalers]) === loras) return;
  loras = JSON.stringify([offered, upscalers]);
  const scales = kept.get("loras", {});
  $("loras").replaceChildren(...offered.map((each) => h("label", { title: about(each) }, h("span", {}, each.name),
    h("input", { type: "number", step: "any", min: "-10", max: "10", inputmode: "decimal", "data-lora": each.name, value: scales[each.name] ?? "" }),
    each.trigger_words?.length ? h("small", {}, each.trigger_words.join(", ")) : "")));
  $("lora-field").hidden = !offered.length;
  $("upscale-field").hidden = !upscalers.length;
  const value = kept.get("upscale", "");
  $("upscale").replaceChildren(h("option", { value: "" }, "No"), ...upscalers.flatMap((name) =>
    [2, 4].map((factor) => h("option", { value: `${factor} ${name}` }, `${factor}× with ${name}`))));
  choose($("upscale"), value);
  const second = $("hires_upscaler").value || UNSET.hires_upscaler;
  $("hires_upscaler").replaceChildren(...[...LATENT, ...upscalers].map((name) => h("option", { value: name }, name.replaceAll("_", " "))));
  choose($("hires_upscaler"), second);
}

/** Choose an option if there is one like it; whether there is. */
function choose(select, value) {
  const names = [...select.options].map((option) => option.value);
  const found = names.includes(value) ? value : nearest(value, names);
  if (found !== undefined) select.value = found;
  return found !== undefined;
}

/** The chosen model's lists and values: those used last with it, else its own. */
function fill(anew = false) {
  const chosen = model();
  if (!chosen) return;
  const { meta } = chosen;
  $("sampler").replaceChildren(...meta.samplers.map((name) => h("option", {}, name)));
  $("schedule").replaceChildren(...meta.schedules.map((name) => h("option", {}, name)));
  $("step_cache").replaceChildren(...meta.step_caches.map((name) => h("option", { value: name }, name === "none" ? "no" : name)));
  $("decoder-field").hidden = meta.decoders.length < 2;
  const [width, height] = meta.defaults.size.split("x");
  const own = { ...meta.defaults, ...UNSET, cfg: meta.defaults.cfg_scale, decoder: meta.decoders[0], width, height };
  const last = anew ? {} : kept.get("models", {})[chosen.id] || {};
  for (const name of PER_MODEL) $(name).value = last[name] || (own[name] ?? "");
  $("steps").max = meta.limits.max_steps;
  $("count").max = meta.limits.max_n;
  $("qualities").replaceChildren(...Object.entries(meta.quality).map(([name, steps]) =>
    chip(name[0].toUpperCase() + name.slice(1), () => { $("steps").value = steps; }, { "data-steps": steps, title: `${steps} steps` })));
  sizes.offer(chosen);
  show();
}

/** Everything that depends on the values: which fields are there, what is pressed, what the hints say. */
function show() {
  const chosen = model();
  $("generate").disabled = !chosen;
  $("create").classList.toggle("waiting", !chosen);
  if (!chosen) {
    if (loras === null) return; // the server was not heard of yet
    $("model-state").replaceChildren("No model is on this machine yet. ", h("a", { href: "#/models" }, "Download one"), " first.");
    return;
  }
  const { meta } = chosen;
  const can = new Set(meta.capabilities);
  const edits = can.has("image-to-image") || can.has("inpainting") || can.has("reference-edit");
  inputs.allow(edits ? meta.limits.max_images : 0, can.has("inpainting") || can.has("reference-edit"), chosen.id, meta.limits.max_input_pixels);
  const starts = inputs.given().length > 0;
  $("strength-field").hidden = !starts || meta.edit_mode === "reference";
  $("strength-value").textContent = Number($("strength").value).toFixed(2);
  $("cfg-field").hidden = meta.limits.max_cfg_scale === 1;
  $("negative-field").hidden = $("cfg-field").hidden || Number($("cfg").value) <= 1;
  addons.show(meta.family);
  $("guidance-field").hidden = !meta.distilled_guidance;
  $("quality-field").hidden = !Object.keys(meta.quality).length;
  showExamples(meta.examples);
  $("prompt").placeholder = `Such as: ${(meta.examples.length ? meta.examples : EXAMPLES).slice(0, 2).join(" · ")}`;
  sizes.show(starts);
  for (const each of $("qualities").children) press(each, each.dataset.steps === $("steps").value);
  say($("model-state"), [meta.description, memoryWords(meta, $("model").value), can.has("text-to-image") ? "" : "Needs an input picture."].filter(Boolean).join(" "));
}

/** Prompts that make a first picture in one click. */
function showExamples(own) {
  const examples = own.length ? own : EXAMPLES;
  if ($("examples").dataset.shown === examples.join()) return;
  $("examples").dataset.shown = examples.join();
  $("examples").replaceChildren(...examples.map((text) => chip(text, () => { $("prompt").value = text; generate(); }, { "aria-pressed": null })));
}

function memoryWords({ state, memory, best }, name) {
  if (name.includes(":") && name !== best) return ""; // what is told is of another quantisation
  if (state === "loaded" && !name.includes(":")) return "In memory, ready to start at once.";
  if (!memory) return "";
  return `${memory.fits ? "Loaded when needed" : "It may not fit"}: ${needWords(memory)}.`;
}

/** All settings of a picture, and what it started from as far as that is known. */
export function load(parameters, source) {
  apply(named(parameters));
  if (source) {
    inputs.replace(source);
    toast("Its input pictures are in the form again.");
  } else if (startOf(parameters)) {
    if (!inputs.given().length) toast("It was made from a picture: choose that too.");
  } else {
    const before = inputs.replace();
    if (before.images.length) toast("The input picture was removed, because this one was made from text only.", "info", ["Put it back", () => inputs.replace(before)]);
  }
}

/** Put values into the form; what they do not say is as the model has it. */
export function apply(values) {
  chooseModel(values.model);
  fill(true);
  for (const name of PER_MODEL) {
    if (values[name] == null || values[name] === "") continue;
    if ($(name).tagName === "SELECT") choose($(name), values[name]);
    else $(name).value = values[name];
  }
  for (const name of ["prompt", "negative"]) $(name).value = values[name] ?? "";
  seed.set(values.seed);
  applyAddons(values);
  remember();
  show();
  toCreate($("prompt"));
}

function chooseModel(name) {
  if (!name) return;
  const found = optionOf(name);
  if (found) {
    $("model").value = found;
    kept.set("model", found);
  }
  const [, quant] = name.split(":");
  const other = found && quant && !model().meta.quants.some((each) => each.name === name && each.on_disk);
  if (!found) toast(`Its model, ${name}, is not here: ${$("model").value} stays chosen.`);
  if (other) toast(`Its quantisation, ${quant}, is not here: another one of ${idOf(name)} is chosen.`);
}

function applyAddons({ loras: wanted = [], upscale = "" }) {
  for (const field of document.querySelectorAll("[data-lora]")) field.value = wanted.find(({ name }) => name === field.dataset.lora)?.scale ?? "";
  const missing = wanted.map(({ name }) => name).filter((name) => !document.querySelector(`[data-lora="${CSS.escape(name)}"]`));
  const [factor, upscaler] = upscale.split(/ (.*)/);
  const there = [...$("upscale").options].map((option) => option.value);
  if (upscale && !there.includes(upscale) && there.some((value) => value.split(/ (.*)/)[1] === upscaler)) {
    $("upscale").append(h("option", { value: upscale }, `${factor}× with ${upscaler}`));
  }
  $("upscale").value = "";
  if (upscale && !choose($("upscale"), upscale)) missing.push(upscaler);
  if (missing.length) toast(`Not on this server, so left out: ${missing.join(", ")}.`, "error");
}

function remember() {
  for (const name of REMEMBERED) kept.set(name, $(name).value);
  seed.remember();
  if (!model()) return;
  const every = kept.get("models", {});
  every[model().id] = Object.fromEntries(PER_MODEL.map((name) => [name, $(name).value]));
  kept.set("models", every);
  const fields = [...document.querySelectorAll("[data-lora]")];
  if (fields.length) kept.set("loras", Object.fromEntries(fields.map((each) => [each.dataset.lora, each.value])));
}

function wanted() {
  const { meta } = model();
  const visible = (name) => !$(`${name}-field`).hidden;
  const number = (name) => ($(name).value === "" ? undefined : Number($(name).value));
  const [factor, upscaler] = visible("upscale") ? $("upscale").value.split(/ (.*)/) : [];
  const chosen = [...document.querySelectorAll("[data-lora]")].filter((each) => Number(each.value));
  const images = inputs.given();
  return {
    model: $("model").value,
    prompt: $("prompt").value,
    negative_prompt: visible("negative") ? $("negative").value : undefined,
    size: $("width").value && $("height").value ? `${$("width").value}x${$("height").value}` : undefined,
    steps: number("steps"),
    n: number("count"),
    seed: seed.wanted(),
    cfg_scale: visible("cfg") ? number("cfg") : undefined,
    guidance: visible("guidance") ? number("guidance") : undefined,
    sampler: $("sampler").value,
    schedule: $("schedule").value,
    step_cache: $("step_cache").value,
    decoder: visible("decoder") ? $("decoder").value : undefined,
    clip_skip: number("clip_skip"),
    eta: number("eta"),
    flow_shift: number("flow_shift"),
    hires: $("hires_width").value && $("hires_height").value ? {
      width: number("hires_width"), height: number("hires_height"), steps: number("hires_steps"),
      denoising_strength: number("hires_strength"), upscaler: $("hires_upscaler").value,
    } : undefined,
    upscale: factor ? Number(factor) : undefined,
    upscaler,
    lora: chosen.length ? chosen.map((each) => ({ name: each.dataset.lora, scale: Number(each.value) })) : undefined,
    control: addons.control(),
    image: images.length ? images : undefined,
    mask: inputs.givenMask() ?? undefined,
    strength: images.length && visible("strength") ? number("strength") : undefined,
    stream_options: { preview: meta.previews.some((name) => name !== "vae") },
    on_disconnect: "continue",
  };
}

/** What is wrong with the form, and where; null if nothing is. A size has its words beside it already. */
function fault() {
  const chosen = model();
  if (!chosen) return [$("model"), "No model on this machine. Download one under Models."];
  if (!$("prompt").value.trim()) return [$("prompt"), "Enter a prompt."];
  if (sizes.tooLarge()) return [sizes.tooLarge(), ""];
  const wrong = [...$("create").querySelectorAll(":invalid")].find((each) => each.labels && !each.closest("[hidden]"));
  if (wrong) return [wrong, `${wrong.labels[0].firstChild.textContent.trim()}: ${wrong.validationMessage}`];
  const needs = !chosen.meta.capabilities.includes("text-to-image") && !inputs.given().length;
  return needs ? [$("pick"), `${chosen.id} works on a picture. Choose one, or drop or paste it.`] : null;
}

function complain(words, silence = false) {
  $("create-error").textContent = words;
  unanswered = silence;
}

/** Send the form; whoever goes on typing `stays`, others are shown what comes of it. */
async function generate(stays = false) {
  if (sending) return;
  sending = true;
  try {
    await sendForm(stays);
  } finally {
    sending = false;
  }
  if (mine?.over) goOn(mine); // it has ended before its own answer was read
}

/** The next picture of a form that generates forever: until the box is unchecked, or one is cancelled or fails. */
function goOn(job) {
  if (sending || job !== mine) return;
  mine = null;
  if (!$("forever").checked) return;
  if (job.status === "succeeded") generate(true);
  else $("forever").checked = false;
}

async function sendForm(stays) {
  if (loras === null) complain("Still loading the list of models…");
  await offered;
  complain("");
  const found = fault();
  if (found) {
    if ($("more").contains(found[0])) $("more").open = true;
    found[0].focus();
    found[0].closest(".group")?.scrollIntoView({ block: "nearest" });
    return complain(found[1]);
  }
  const body = wanted();
  prompt.remember(body.prompt);
  try {
    const path = body.image ? "/v1/images/edits" : "/v1/images/generations";
    const job = jobs.take(await call("POST", path, body, { Prefer: "respond-async" }));
    if (body.image) sources.add(job, body);
    mine = job;
    seed.drawn(job.parameters.seed);
    const { top, bottom } = $("stage").getBoundingClientRect();
    if (!stays && (top > innerHeight - 160 || bottom < 160)) $("watch").scrollIntoView();
  } catch (problem) {
    if (!(problem instanceof ApiError)) throw problem;
    complain(problem.message, problem.status === 0);
  }
  return undefined;
}
