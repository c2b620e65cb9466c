// Presets: settings of the form under a name, in this browser.

import { $, ask, button, h, say, toast } from "./dom.js";
import { style } from "./late_style.js";
import { kept } from "./store.js";

let form = {}; // {snapshot(), apply(values)}

const presets = () => kept.get("presets", []); // [{name, values}], the newest first
const keep = (list) => kept.set("presets", list);

export async function open(wishes) {
  form = wishes;
  await style();
  if (!$("presets")) document.body.append(make());
  $("preset-name").value = "";
  draw();
  $("presets").showModal();
}

const make = () => h("dialog", { id: "presets", "aria-labelledby": "presets-title" },
  h("div", { class: "bar" }, h("h2", { id: "presets-title" }, "Presets"), button("×", close, { class: "close icon", "aria-label": "Close" })),
  h("ul", { id: "preset-list" }),
  h("p", { class: "hint", id: "presets-none" }, "A preset keeps the model and all settings under a name, in this browser."),
  h("form", { class: "group", onsubmit: (event) => { event.preventDefault(); save(); } },
    h("label", {}, "Name", h("input", { id: "preset-name", maxlength: 80, dir: "auto" })),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "preset-prompt" }), " With the prompt"),
    h("div", { class: "row end" }, button("Reset to the model's settings", reset), h("button", { type: "submit", class: "primary" }, "Save"))));

const close = () => $("presets").close();

function reset() {
  $("defaults").click();
  close();
}

function draw() {
  const list = presets();
  $("preset-list").replaceChildren(...list.map(({ name, values }) => h("li", { class: "row" },
    h("button", { type: "button", class: "use", onclick: () => use(values), "aria-label": `Use ${name}` }, h("span", { dir: "auto" }, name), h("small", {}, about(values))),
    button("Overwrite", () => overwrite(name, values), { class: "small", "aria-label": `Overwrite ${name}` }),
    button("Delete", () => remove(name), { class: "small danger", "aria-label": `Delete ${name}` }))));
  $("presets-none").hidden = list.length > 0;
}

const about = ({ model, width, height, steps }) => `${model} · ${width} × ${height} · ${steps} steps`;

function use(values) {
  const { prompt, negative } = form.snapshot();
  form.apply({ prompt, negative, ...values });
  close();
  toast("Preset applied.");
}

/** The settings of the form; without the prompt nothing of it is kept. */
function taken(whole) {
  const { prompt, negative, ...values } = form.snapshot();
  return whole ? { prompt, negative, ...values } : values;
}

async function save() {
  const name = $("preset-name").value.trim();
  if (!name) return;
  if (presets().some((each) => each.name === name) && !await ask(`Overwrite ${name}?`, "There is a preset of this name.", "Overwrite")) return;
  put(name, taken($("preset-prompt").checked));
  $("preset-name").value = "";
}

async function overwrite(name, values) {
  if (await ask(`Overwrite ${name}?`, "It takes the settings that are in the form now.", "Overwrite")) put(name, taken("prompt" in values));
}

function put(name, values) {
  keep([{ name, values }, ...presets().filter((each) => each.name !== name)]);
  draw();
  say($("announce"), `${name} saved.`);
}

/** It can be put back. */
function remove(name) {
  const before = presets();
  keep(before.filter((each) => each.name !== name));
  draw();
  $("preset-name").focus();
  toast(`${name} deleted.`, "info", ["Put it back", () => { keep(before); draw(); }]);
}
