// The form: what to make, with which model. It shows what the chosen model can do and remembers everything.

import * as addons from "./addons.js";
import { ApiError, call } from "./api.js";
import { $, chip, h, needWords, press, say, toast, toCreate } from "./dom.js";
import * as help from "./help.js";
import * as inputs from "./inputs.js";
import * as jobs from "./jobs.js";
import * as prompt from "./prompt.js";
import * as seed from "./seed.js";
import { choose, named, startOf } from "./settings.js";
import * as sizes from "./sizes.js";
import * as sources from "./sources.js";
import { kept } from "./store.js";
import * as upscalers from "./upscalers.js";

const REMEMBERED = ["prompt", "negative", "count", "upscale"];
const PER_MODEL = [
  "width", "height", "steps", "cfg", "guidance", "sampler", "schedule", "step_cache", "decoder", "strength", "clip_skip", "eta", "flow_shift",
  "variation_seed", "variation_strength", "hires_width", "hires_height", "hires_steps", "hires_strength", "hires_upscaler",
];
const UNSET = { hires_upscaler: "latent", hires_strength: 0.7, clip_skip: "", eta: "", flow_shift: "", variation_seed: "", variation_strength: 0 }; // empty is as the model has it
const BY_PICTURE = ["width", "height", "strength"];
const EXAMPLES = ["A lighthouse at dusk, watercolour", "Portrait of a fox, golden hour", "A bowl of ramen, studio photo"];
const HERE = ["loaded", "loading", "ready"];
let models = [];
let isHeard = false; // whether the server has told its models
let forecast = null; // asks what the next picture costs; read when the form is ready
let heard = () => {};
const offered = new Promise((resolve) => { heard = resolve; });
let byPicture = []; // [name, value before, value] of fields that a picture to start from has set
let mine = null; // the last job of this form, until the next one follows it
let sending = false; // a form is sent once, however often Generate is pressed meanwhile
let unanswered = false; // whether the error that is shown is the server's silence

const idOf = (name) => name.split(":")[0];
/** Whether a model shows how a picture comes without the cost of its decoder. */
export const previewsOf = (name) => models.find((each) => each.id === idOf(name))?.meta.previews.some((each) => each !== "vae") ?? false;
const model = () => models.find((each) => each.id === idOf($("model").value));

export function start() {
  const form = $("create");
  form.onsubmit = (event) => { event.preventDefault(); generate(); };
  form.oninput = changed;
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
    complain("");
    fill();
  };
  $("defaults").onclick = () => { fill(true); remember(); };
  seed.start();
  for (const name of REMEMBERED) $(name).value = kept.get(name, $(name).value);
  $("more").open = kept.get("more", false);
  $("more").ontoggle = () => kept.set("more", $("more").open);
  $("more").querySelector("summary").onclick = () => $("more").addEventListener("toggle", () => $("more").open && $("more").scrollIntoView(), { once: true });
  inputs.start(takeSize, load);
  sources.start();
  prompt.start(changed);
  addons.start(changed);
  help.offer(form);
  const others = { models: () => models, snapshot, apply, request: wanted, fault: settingFault };
  $("presets-open").onclick = () => open(import("./presets.js"), others);
  $("set-open").onclick = () => open(import("./sets.js"), others);
  jobs.listen((job, event) => { if (event.type === "online" && unanswered) complain(""); });
  jobs.listen((job, event) => { if (job && event.type === "ended") goOn(job); });
}

/** Something was chosen or typed; what was wrong before may be right now. */
function changed() {
  complain("");
  remember();
  show();
}

/** The pictures to start from are others; a new border is drawn from nothing. Without one the values are as before. */
function takeSize(size, exactly) {
  if (size || !inputs.given().length) putBack();
  if (size) {
    const before = BY_PICTURE.map((name) => $(name).value);
    if (exactly) $("strength").value = 1;
    sizes.fit(size, exactly);
    byPicture = BY_PICTURE.map((name, index) => [name, before[index], $(name).value]);
  }
  remember();
  show();
}

/** What a picture has set and nobody has changed since. */
function putBack() {
  for (const [name, before, set] of byPicture) if ($(name).value === set) $(name).value = before;
  byPicture = [];
}

/** A dialog that is read when it is first opened. */
async function open(part, form) {
  try {
    (await part).open(form);
  } catch {
    toast("The server is not responding. Is it running?", "error");
  }
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
  isHeard = true;
  upscalers.offer(found.upscalers.map(({ name }) => name), UNSET.hires_upscaler);
  addons.offer(found);
  prompt.offer(found);
  if (model() && $("model").value !== before) fill();
  else show();
  heard();
  forecast ??= import("./forecast.js").then((part) => part.start({ request: wanted, fault: settingFault, take: takeCheaper })).catch(() => { forecast = null; });
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

/** The chosen model's lists and values: those used last with it, else its own. */
function fill(anew = false) {
  const chosen = model();
  if (!chosen) return;
  const { meta } = chosen;
  $("sampler").replaceChildren(...meta.samplers.map((name) => h("option", {}, name)));
  $("schedule").replaceChildren(...meta.schedules.map((name) => h("option", {}, name)));
  $("step_cache").replaceChildren(...meta.step_caches.map((name) => h("option", { value: name }, name === "none" ? "No" : name)));
  $("decoder-field").hidden = meta.decoders.length < 2;
  $("variation-field").hidden = !meta.variations;
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
    if (!isHeard) return; // the server was not heard of yet
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
  $("variation-value").textContent = Number($("variation_strength").value).toFixed(2);
  $("cfg-field").hidden = meta.limits.max_cfg_scale === 1;
  $("negative-field").hidden = $("cfg-field").hidden || Number($("cfg").value) <= 1;
  addons.show(meta.family);
  $("guidance-field").hidden = !meta.distilled_guidance;
  $("quality-field").hidden = !Object.keys(meta.quality).length;
  showExamples(meta.examples);
  $("prompt").placeholder = `Such as: ${(meta.examples.length ? meta.examples : EXAMPLES).slice(0, 2).join(" · ")}`;
  sizes.show(starts);
  for (const each of $("qualities").children) press(each, each.dataset.steps === $("steps").value);
  forecast?.then((ask) => ask?.());
  say($("model-state"), [meta.description, memoryWords(meta, $("model").value), can.has("text-to-image") ? "" : "Needs an input picture."].filter(Boolean).join(" "));
}

/** A setting that fits where the chosen one does not. */
function takeCheaper({ size, model: name }) {
  if (size) [$("width").value, $("height").value] = size.split("x");
  else {
    chooseModel(name);
    fill();
  }
  remember();
  show();
}

/** Prompts that make a first picture in one click. */
function showExamples(own) {
  const examples = own.length ? own : EXAMPLES;
  if ($("examples").dataset.shown === examples.join()) return;
  $("examples").dataset.shown = examples.join();
  $("examples").replaceChildren(...examples.map((text) => chip(text, () => { $("prompt").value = text; generate(); $("watch-title").focus({ preventScroll: true }); }, { "aria-pressed": null })));
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
  byPicture = [];
  chooseModel(values.model);
  fill(true);
  for (const name of PER_MODEL) {
    if (values[name] == null || values[name] === "") continue;
    if ($(name).tagName === "SELECT") choose($(name), values[name]);
    else $(name).value = values[name];
  }
  for (const name of ["prompt", "negative"]) $(name).value = values[name] ?? "";
  if (values.count) $("count").value = values.count;
  if ("seed" in values) seed.set(values.seed);
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

/** The settings of the form as `apply` takes them, without the seed. */
function snapshot() {
  const names = ["model", "prompt", "negative", "count", "upscale", ...PER_MODEL];
  return { ...Object.fromEntries(names.map((name) => [name, $(name).value])), loras: addons.loras() };
}

function applyAddons({ loras, upscale }) {
  const missing = [...addons.chooseLoras(loras), ...upscalers.choose(upscale)];
  if (missing.length) toast(`Not on this server, so left out: ${missing.join(", ")}.`, "error");
}

function remember() {
  for (const name of REMEMBERED) kept.set(name, $(name).value);
  seed.remember();
  if (!model()) return;
  const every = kept.get("models", {});
  every[model().id] = Object.fromEntries(PER_MODEL.map((name) => [name, $(name).value]));
  kept.set("models", every);
}

function wanted() {
  const visible = (name) => !$(`${name}-field`).hidden;
  const number = (name) => ($(name).value === "" ? undefined : Number($(name).value));
  const images = inputs.given();
  const varies = visible("variation") && number("variation_strength");
  return {
    model: $("model").value,
    ...addons.split($("prompt").value),
    negative_prompt: visible("negative") ? $("negative").value : undefined,
    size: $("width").value && $("height").value ? `${$("width").value}x${$("height").value}` : undefined,
    steps: number("steps"),
    n: number("count"),
    seed: seed.wanted(),
    variation_seed: varies ? number("variation_seed") : undefined,
    variation_strength: varies || undefined,
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
    ...upscalers.wanted(),
    control: addons.control(),
    image: images.length ? images : undefined,
    mask: inputs.givenMask() ?? undefined,
    strength: images.length && visible("strength") ? number("strength") : undefined,
    stream_options: { preview: previewsOf($("model").value) },
    on_disconnect: "continue",
  };
}

/** What is wrong with the form, and where; null if nothing is. */
const fault = () => (model() && !$("prompt").value.trim() ? [$("prompt"), "Enter a prompt."] : settingFault());

/** The same but for the prompt. A size has its words beside it already. */
function settingFault() {
  const chosen = model();
  if (!chosen) return [$("model"), "No model on this machine. Download one under Models."];
  if (sizes.tooLarge()) return [sizes.tooLarge(), ""];
  const wrong = [...$("create").querySelectorAll(":invalid")].find((each) => each.labels && each !== $("prompt") && !each.closest("[hidden]"));
  if (wrong) return [wrong, `${wrong.labels[0]?.firstChild.textContent.trim() ?? wrong.ariaLabel}: ${wrong.validationMessage}`];
  if (addons.lacksPicture()) return [$("control-file"), "Choose a picture for the ControlNet, or None as its network."];
  const needs = !chosen.meta.capabilities.includes("text-to-image") && !inputs.given().length;
  return needs ? [$("pick"), `${chosen.id} works on a picture. Choose one, or drop or paste it.`] : null;
}

function complain(words, silence = false) {
  $("create-error").textContent = words;
  if (words && words === $("cost").textContent) say($("cost"), ""); // once is enough
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
  if (!isHeard) complain("Still loading the list of models…");
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
  prompt.remember($("prompt").value);
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
