// The fields for LoRAs with their weights and trigger words, for textual inversions, and for a ControlNet.

import { $, button, dataUrl, h } from "./dom.js";
import * as help from "./help.js";
import { style } from "./late_style.js";
import { pick } from "./picker.js";

const FEW = 6; // textual inversions and ControlNets that are shown without a search
let offered = { loras: [], embeddings: [], nets: [] };
let form = {}; // {weights, weigh(name, weight), changed()}
let picture = null; // data: URL, for the ControlNet
const rows = new Map(); // of chosen LoRAs, by name

/** What there is to choose from, and what is chosen. */
export function draw(place, files, wishes) {
  [offered, form] = [files, wishes];
  if (!place.childElementCount) {
    style();
    place.append(loraField(), embeddingField(), controlField());
    help.offer(place);
  }
  drawLoras();
  drawEmbeddings();
  drawControl();
}

const loraField = () => h("fieldset", { id: "lora-field", "data-help": "lora" }, h("legend", {}, "LoRAs"),
  h("div", { id: "loras" }), button("Add a LoRA…", addLora, { id: "lora-add", class: "small" }));

async function addLora() {
  const chosen = form.weights.map(([name]) => name);
  const name = await pick("Add a LoRA", offered.loras.filter((each) => !chosen.includes(each.name)).map(({ name, base_model: base, trigger_words: words }) => (
    { name, hint: [base ? `made for ${base}` : "", (words ?? []).join(", ")].filter(Boolean).join(" · ") })));
  if (!name) return;
  form.weigh(name, 1);
  rows.get(name)?.querySelector("input").focus();
}

function drawLoras() {
  $("lora-field").hidden = !offered.loras.length;
  const wanted = form.weights.filter(([name]) => offered.loras.some((each) => each.name === name));
  for (const name of rows.keys()) if (!wanted.some(([each]) => each === name)) rows.delete(name);
  const elements = wanted.map(([name, weight]) => row(name, weight));
  const there = [...$("loras").children];
  if (elements.some((each, index) => each !== there[index]) || elements.length !== there.length) $("loras").replaceChildren(...elements);
  $("lora-add").hidden = wanted.length === offered.loras.length;
}

function row(name, weight) {
  if (!rows.has(name)) rows.set(name, makeRow(offered.loras.find((each) => each.name === name)));
  for (const field of rows.get(name).querySelectorAll("input")) if (field !== document.activeElement) field.value = weight;
  return rows.get(name);
}

/** The slider has the usual weights, the number beside it takes all. */
function makeRow({ name, base_model: base, trigger_words: words }) {
  const weigh = ({ target }) => { if (target.validity.valid) form.weigh(name, target.value); };
  const away = button("×", () => { form.weigh(name, null); $("lora-add").focus(); }, { class: "small", "aria-label": `Remove ${name}` });
  return h("div", { class: "lora", role: "group", "aria-label": name },
    h("span", { title: base ? `made for ${base}` : null }, name), away,
    h("input", { type: "range", min: 0, max: 2, step: 0.05, "aria-label": `Slider: ${name}`, oninput: weigh }),
    h("input", { type: "number", step: "any", min: -10, max: 10, inputmode: "decimal", "data-lora": name, "aria-label": `Weight of ${name}`, oninput: weigh }),
    words?.length ? h("div", { class: "chips" }, ...words.map((word) => button(word, () => put($("prompt"), word), { class: "chip", "aria-label": `Add to the prompt: ${word}` }))) : null);
}

/** Words at the end of a prompt, unless they are in it. */
function put(field, words) {
  if (!field.value.includes(words)) field.value = [field.value.trim().replace(/,$/, ""), words].filter(Boolean).join(", ");
  form.changed();
}

const embeddingField = () => h("fieldset", { id: "embedding-field", "data-help": "embedding" }, h("legend", {}, "Textual inversions"),
  h("div", { class: "chips", id: "embeddings" }),
  h("label", { class: "check", id: "embed-negative-field" }, h("input", { type: "checkbox", id: "embed-negative", checked: true }), " Add to the negative prompt"));

function drawEmbeddings() {
  const names = offered.embeddings.map(({ name }) => name);
  $("embedding-field").hidden = !names.length;
  $("embed-negative-field").hidden = $("negative-field").hidden;
  if ($("embeddings").dataset.offered === names.join()) return;
  $("embeddings").dataset.offered = names.join();
  const embed = (name) => put($("negative-field").hidden || !$("embed-negative").checked ? $("prompt") : $("negative"), `embedding:${name}`);
  const search = async () => {
    const name = await pick("Add a textual inversion", offered.embeddings.map((each) => ({ name: each.name, hint: "" })));
    if (name) embed(name);
  };
  $("embeddings").replaceChildren(...names.slice(0, FEW).map((name) => button(name, () => embed(name), { class: "chip" })),
    ...(names.length > FEW ? [button("More…", search, { class: "chip", "aria-label": "More textual inversions" })] : []));
}

async function findNet() {
  const name = await pick("Choose a ControlNet", offered.nets.map((each) => ({ name: each.name, hint: "" })));
  if (!name) return;
  $("control-model").value = name;
  form.changed();
}

function controlField() {
  const strength = h("output", {}, "0.90");
  const take = async ({ target }) => usePicture(target.files.length ? await dataUrl(target.files[0]) : null);
  return h("fieldset", { id: "control-field", "data-help": "control" }, h("legend", {}, "ControlNet"),
    h("label", {}, "Network", h("select", { id: "control-model" })),
    button("Find…", findNet, { id: "control-find", class: "small", "aria-label": "Find a ControlNet" }),
    h("label", {}, h("span", {}, "Control strength ", strength),
      h("input", { type: "range", id: "control-strength", step: 0.05, min: 0, max: 2, value: 0.9, oninput: ({ target }) => { strength.textContent = Number(target.value).toFixed(2); } })),
    h("label", {}, "Control picture", h("input", { type: "file", id: "control-file", accept: "image/*", onchange: take })),
    h("img", { id: "control-picture", alt: "Picture for the ControlNet", hidden: true }),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "control-canny" }), " Detect edges first"));
}

/** A data: URL; null for none. */
export function usePicture(url) {
  picture = url;
  $("control-picture").hidden = !url;
  if (url) $("control-picture").src = url;
  form.changed();
}

function drawControl() {
  const names = offered.nets.map(({ name }) => name);
  $("control-field").hidden = !names.length;
  if ($("control-field").dataset.offered === names.join()) return;
  $("control-field").dataset.offered = names.join();
  $("control-find").hidden = names.length <= FEW;
  const before = $("control-model").value;
  $("control-model").replaceChildren(h("option", { value: "" }, "None"), ...names.map((name) => h("option", {}, name)));
  if (names.includes(before)) $("control-model").value = before;
}

/** The field `control` of a request; its `image` is null as long as there is none. */
export function control() {
  if ($("control-field").hidden || !$("control-model").value) return undefined;
  return {
    model: $("control-model").value,
    image: picture,
    strength: Number($("control-strength").value),
    preprocess: $("control-canny").checked ? "canny" : "none",
  };
}
