// The form: what to make, with which model. It shows what the chosen model can do and remembers everything.

import { ApiError, call } from "./api.js";
import { $, button, bytes, dataUrl, h, kept, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { paintMask } from "./mask.js";

const ASPECTS = [["Square", 1], ["3:2", 1.5], ["2:3", 1 / 1.5], ["16:9", 16 / 9], ["9:16", 9 / 16]];
const REMEMBERED = ["prompt", "negative", "count", "seed", "upscale"];
const PER_MODEL = ["width", "height", "steps", "cfg", "guidance", "sampler", "schedule", "strength"];
let models = [];
let inputs = []; // data: URLs
let mask = null;
let loras = [];
const sources = new Map(); // job id -> the picture it started from, for comparing

export const sourceOf = (id) => sources.get(id);
const model = () => models.find((each) => each.id === $("model").value);

export function start() {
  const form = $("create");
  form.onsubmit = (event) => { event.preventDefault(); generate(); };
  form.oninput = () => { remember(); show(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  $("model").onchange = () => { kept.set("model", $("model").value); fill(); };
  $("dice").onclick = () => { $("seed").value = ""; remember(); };
  $("pick").onclick = () => $("file").click();
  $("file").onchange = () => { addFiles($("file").files); $("file").value = ""; };
  $("paint").onclick = async () => { mask = await paintMask(inputs[0], mask); show(); };
  $("notify").checked = kept.get("notify", false);
  $("notify").onchange = async () => {
    const wanted = $("notify").checked && "Notification" in window && await Notification.requestPermission() === "granted";
    $("notify").checked = wanted;
    kept.set("notify", wanted);
  };
  const area = $("view-create");
  area.ondragover = (event) => { event.preventDefault(); area.classList.add("dropping"); };
  area.ondragleave = (event) => { if (!area.contains(event.relatedTarget)) area.classList.remove("dropping"); };
  area.ondrop = (event) => { event.preventDefault(); area.classList.remove("dropping"); addFiles(event.dataTransfer.files); };
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); }
  });
  for (const name of REMEMBERED) $(name).value = kept.get(name, $(name).value);
}

/** New from the server: the models, and the names of LoRAs and upscalers. */
export function offer(list, loraNames, upscalers) {
  models = list.filter((each) => ["loaded", "loading", "ready", "pulling"].includes(each.meta.state));
  const chosen = $("model").value || kept.get("model") || "";
  const before = model();
  $("model").replaceChildren(...models.map((each) =>
    h("option", { value: each.id }, each.id + (each.meta.state === "loaded" ? " (in memory)" : ""))));
  const found = models.find((each) => each.id === chosen) || models.find((each) => each.meta.default) || models[0];
  if (found) $("model").value = found.id;
  if (!before || before.id !== found?.id) fill();
  offerAddons(loraNames, upscalers);
  show();
}

function offerAddons(loraNames, upscalers) {
  if (loras.length !== loraNames.length) {
    const scales = kept.get("loras", {});
    $("loras").replaceChildren(...loraNames.map((name) => h("label", {}, name, " ",
      h("input", { type: "number", step: "0.05", min: "-10", max: "10", placeholder: "off", "data-lora": name, value: scales[name] ?? "" }))));
    loras = loraNames;
  }
  $("lora-field").hidden = !loras.length;
  $("upscale-field").hidden = !upscalers.length;
  const value = $("upscale").value || kept.get("upscale", "");
  $("upscale").replaceChildren(h("option", { value: "" }, "Off"), ...upscalers.flatMap((name) =>
    [2, 4].map((factor) => h("option", { value: `${factor} ${name}` }, `${factor}× ${name}`))));
  $("upscale").value = value;
  if ($("upscale").selectedIndex < 0) $("upscale").value = "";
}

/** The chosen model's lists and values: those used last with it, else its own. */
function fill() {
  const chosen = model();
  if (!chosen) return;
  const { meta } = chosen;
  $("sampler").replaceChildren(...meta.samplers.map((name) => h("option", {}, name)));
  $("schedule").replaceChildren(...meta.schedules.map((name) => h("option", {}, name)));
  const [width, height] = meta.defaults.size.split("x");
  const own = { ...meta.defaults, cfg: meta.defaults.cfg_scale, width, height };
  const last = kept.get("models", {})[chosen.id] || {};
  for (const name of PER_MODEL) $(name).value = last[name] || own[name];
  $("width").max = $("height").max = meta.limits.max_side;
  $("width").step = $("height").step = 1;
  $("steps").max = meta.limits.max_steps;
  $("count").max = meta.limits.max_n;
  $("sizes").replaceChildren(...ASPECTS.map(([name, aspect]) => chip(name, () => setSize(meta, aspect))));
  const names = Object.entries(meta.quality);
  $("qualities").replaceChildren(...names.map(([name, steps]) => chip(name, () => { $("steps").value = steps; })));
  show();
}

function chip(name, act) {
  return button(name, () => { act(); remember(); show(); }, { class: "chip", "aria-pressed": "false" });
}

function sizeFor(meta, aspect) {
  const [width, height] = meta.defaults.size.split("x").map(Number);
  const { size_multiple: multiple, max_side: most } = meta.limits;
  const near = (side) => Math.max(multiple, Math.min(Math.round(side / multiple), Math.floor(most / multiple)) * multiple);
  const pixels = Math.min(width * height, meta.limits.max_pixels);
  return [near(Math.sqrt(pixels * aspect)), near(Math.sqrt(pixels / aspect))];
}

function setSize(meta, aspect) {
  [$("width").value, $("height").value] = sizeFor(meta, aspect);
}

/** Everything that depends on the values: which fields are there, what is pressed, what the hints say. */
function show() {
  const chosen = model();
  $("generate").disabled = !chosen;
  $("model-state").textContent = chosen ? "" : "No model is on this machine yet. Pull one under Models.";
  if (!chosen) return;
  const { meta } = chosen;
  const can = new Set(meta.capabilities);
  const edits = can.has("image-to-image") || can.has("inpainting") || can.has("reference-edit");
  const needsPicture = !can.has("text-to-image");
  $("inputs-field").hidden = !edits;
  $("inputs-label").textContent = meta.limits.max_images > 1 ? "Pictures to edit or combine"
    : needsPicture ? "Picture to repaint" : "Start from a picture";
  $("strength-field").hidden = !inputs.length || meta.edit_mode === "reference";
  $("strength-value").textContent = Number($("strength").value).toFixed(2);
  $("paint").hidden = inputs.length !== 1 || !(can.has("inpainting") || can.has("reference-edit"));
  $("paint").textContent = mask ? "Change the mask…" : "Paint a mask…";
  $("cfg-field").hidden = meta.limits.max_cfg_scale === 1;
  $("negative-field").hidden = $("cfg-field").hidden || Number($("cfg").value) <= 1;
  $("guidance-field").hidden = !meta.distilled_guidance;
  $("quality-field").hidden = !Object.keys(meta.quality).length;
  [...$("qualities").children].forEach((each) => press(each, String(meta.quality[each.textContent]) === $("steps").value));
  [...$("sizes").children].forEach((each, index) => {
    const [width, height] = sizeFor(meta, ASPECTS[index][1]);
    press(each, $("width").value === String(width) && $("height").value === String(height));
  });
  $("model-state").textContent = `${meta.description} ${memoryWords(meta)}`;
  const many = meta.limits.max_images;
  $("inputs").replaceChildren(...inputs.map((url, index) => thumbnail(url, index)));
  if (inputs.length > many) $("inputs-hint").textContent = `This model takes ${many} picture${many > 1 ? "s" : ""} at a time.`;
}

function memoryWords({ state, memory }) {
  if (state === "loaded") return "It is in memory.";
  if (!memory) return "";
  const words = `needs ${bytes(memory.needs)} of memory, ${bytes(memory.free)} are free`;
  return memory.fits ? `It is loaded when needed: ${words}.` : `It may not fit: ${words}.`;
}

const press = (element, pressed) => element.setAttribute("aria-pressed", String(pressed));

function thumbnail(url, index) {
  const remove = button("×", () => { inputs.splice(index, 1); mask = null; show(); }, { "aria-label": `Remove picture ${index + 1}` });
  return h("figure", { class: "thumb" }, h("img", { src: url, alt: `Input picture ${index + 1}` }),
    mask && index === 0 ? h("img", { src: mask, alt: "Mask", class: "mask" }) : null, remove);
}

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) {
      toast(`${file.name} is no picture.`, "error");
      continue;
    }
    await useInput(await dataUrl(file), { withSettings: true });
  }
}

/** Take a picture as input; one that carries its settings offers them. */
export async function useInput(url, { withSettings = false } = {}) {
  const most = model()?.meta.limits.max_images ?? 1;
  inputs = most > 1 ? [...inputs, url].slice(-most) : [url];
  mask = null;
  show();
  if (!withSettings) return;
  try {
    const { info, parameters } = await call("POST", "/sdapi/v1/png-info", { image: url });
    if (info) {
      toastWithAction("This picture carries its settings.", "Use them", () => { inputs = inputs.filter((each) => each !== url); apply(named(parameters)); });
    }
  } catch (error) {
    inputs = inputs.filter((each) => each !== url);
    show();
    toast(error.message, "error");
  }
}

function toastWithAction(text, label, act) {
  const box = h("p", { class: "toast info" }, `${text} `);
  box.append(button(label, () => { act(); box.remove(); }));
  $("toasts").append(box);
  setTimeout(() => box.remove(), 15000);
}

/** AUTOMATIC1111's names of parameters as the form's. */
export function named(parameters) {
  const [width, height] = (parameters.Size || "").split("x");
  return {
    prompt: parameters.Prompt, negative: parameters["Negative prompt"], steps: parameters.Steps, sampler: parameters.Sampler,
    schedule: parameters["Schedule type"], cfg: parameters["CFG scale"], seed: parameters.Seed, width, height,
    model: parameters.Model, strength: parameters["Denoising strength"],
  };
}

/** Put values into the form; those that the model does not know stay as they are. */
export function apply(values) {
  if (models.some((each) => each.id === values.model)) {
    $("model").value = values.model;
    fill();
  }
  for (const [name, value] of Object.entries(values)) {
    const field = $(name);
    if (name === "model" || value == null || value === "" || !field) continue;
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) continue;
    field.value = value;
  }
  remember();
  show();
  location.hash = "#create";
  $("prompt").focus();
}

function remember() {
  for (const name of REMEMBERED) kept.set(name, $(name).value);
  const every = kept.get("models", {});
  every[$("model").value] = Object.fromEntries(PER_MODEL.map((name) => [name, $(name).value]));
  kept.set("models", every);
  kept.set("loras", Object.fromEntries([...document.querySelectorAll("[data-lora]")].map((each) => [each.dataset.lora, each.value])));
}

function wanted() {
  const { meta } = model();
  const visible = (name) => !$(`${name}-field`).hidden;
  const number = (name) => ($(name).value === "" ? undefined : Number($(name).value));
  const [factor, upscaler] = $("upscale").value.split(/ (.*)/);
  const chosen = [...document.querySelectorAll("[data-lora]")].filter((each) => Number(each.value));
  return {
    model: $("model").value,
    prompt: $("prompt").value,
    negative_prompt: visible("negative") ? $("negative").value : undefined,
    size: $("width").value && $("height").value ? `${$("width").value}x${$("height").value}` : undefined,
    steps: number("steps"),
    n: number("count"),
    seed: $("seed").value.trim() === "" ? undefined : Number($("seed").value),
    cfg_scale: visible("cfg") ? number("cfg") : undefined,
    guidance: visible("guidance") ? number("guidance") : undefined,
    sampler: $("sampler").value,
    schedule: $("schedule").value,
    upscale: factor ? Number(factor) : undefined,
    upscaler,
    lora: chosen.length ? chosen.map((each) => ({ name: each.dataset.lora, scale: Number(each.value) })) : undefined,
    image: inputs.length ? inputs : undefined,
    mask: mask ?? undefined,
    strength: inputs.length && visible("strength") ? number("strength") : undefined,
    stream_options: { preview: meta.previews.some((name) => name !== "vae") },
    on_disconnect: "continue",
  };
}

async function generate() {
  const error = $("create-error");
  error.textContent = "";
  if (!$("prompt").value.trim()) {
    error.textContent = "Say what should be in the picture.";
    $("prompt").focus();
    return;
  }
  const body = wanted();
  const path = body.image ? "/v1/images/edits" : "/v1/images/generations";
  try {
    const job = await call("POST", path, body, { Prefer: "respond-async" });
    if (inputs.length) sources.set(job.id, inputs[0]);
    jobs.take(job);
    if ($("watch").getBoundingClientRect().top > innerHeight - 120) $("watch").scrollIntoView();
  } catch (problem) {
    if (!(problem instanceof ApiError)) throw problem;
    error.textContent = problem.message;
  }
}

/** The same request as a command line, without inputs, which do not fit on one. */
export function curlOf(values) {
  const body = JSON.stringify(values).replaceAll("'", "'\\''");
  return `curl -N ${location.origin}/v1/images/generations -H 'Content-Type: application/json' -d '${body}'`;
}
