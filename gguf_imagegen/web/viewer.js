// One picture, full, with everything that made it and what can be done with it.

import { call, imagePath } from "./api.js";
import { apply, curlOf, named, sourceOf, useInput } from "./create.js";
import { $, button, copy, dataUrl, h, toast } from "./dom.js";

let list = []; // items {name, parameters, source}
let index = 0;
let onDeleted = () => {};

export function start(deleted) {
  onDeleted = deleted;
  const dialog = $("viewer");
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  $("viewer-back").onclick = () => go(-1);
  $("viewer-next").onclick = () => go(1);
  dialog.onkeydown = (event) => {
    if (event.target.matches("input")) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  };
}

export function open(items, at) {
  [list, index] = [items, at];
  show();
  if (!$("viewer").open) $("viewer").showModal();
}

/** The pictures of a job as the viewer's items. */
export const ofJob = (job) => job.pictures.filter((each) => each.name).map((each) => ({
  name: each.name,
  source: sourceOf(job.id),
  parameters: {
    Prompt: job.parameters.prompt, "Negative prompt": job.parameters.negative_prompt, Model: job.model,
    Steps: job.parameters.steps, Sampler: job.parameters.sampler, "Schedule type": job.parameters.schedule,
    "CFG scale": job.parameters.cfg_scale, Seed: each.seed, Size: `${job.parameters.width}x${job.parameters.height}`,
  },
}));

function go(step) {
  if (index + step < 0 || index + step >= list.length) return;
  index += step;
  show();
}

function show() {
  const { name, parameters, source } = list[index];
  const image = h("img", { src: imagePath(name), alt: parameters.Prompt || "Picture" });
  $("viewer-figure").replaceChildren(source ? comparison(image, source) : image);
  $("viewer-back").disabled = index === 0;
  $("viewer-next").disabled = index === list.length - 1;
  const rows = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  $("viewer-parameters").replaceChildren(...rows.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, String(value))]));
  $("viewer-actions").replaceChildren(...actions(name, parameters));
}

/** Before and after, with a slider between them. */
function comparison(after, source) {
  const before = h("img", { src: source, alt: "Before", class: "before" });
  const slider = h("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "Before and after" });
  slider.oninput = () => { after.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
  return h("div", { class: "compare" }, h("div", { class: "pair" }, before, after), slider);
}

function actions(name, parameters) {
  const values = named(parameters);
  const request = {
    prompt: values.prompt, negative_prompt: values.negative || undefined, model: values.model, steps: Number(values.steps),
    sampler: values.sampler, schedule: values.schedule, cfg_scale: Number(values.cfg), seed: Number(values.seed),
    size: parameters.Size, stream: true,
  };
  const close = () => $("viewer").close();
  return [
    h("a", { class: "button", href: imagePath(name), download: name }, "Download"),
    button("Use as input", async () => { await asInput(name); close(); }),
    button("Vary", async () => { apply({ ...values, seed: "" }); $("seed").value = ""; await asInput(name); close(); }),
    button("Load settings", () => { apply(values); close(); }),
    button("Copy seed", () => copy(String(values.seed), "Seed")),
    button("Copy prompt", () => copy(values.prompt, "Prompt")),
    button("Copy JSON", () => copy(JSON.stringify(request, null, 2), "JSON")),
    button("Copy curl", () => copy(curlOf(request), "Command")),
    button("Delete", () => remove(name), { class: "danger" }),
  ];
}

async function asInput(name) {
  const answer = await fetch(imagePath(name));
  if (!answer.ok) return toast("This picture is gone.", "error");
  location.hash = "#create";
  return useInput(await dataUrl(await answer.blob()));
}

async function remove(name) {
  if (!window.confirm("Delete this picture for good?")) return;
  try {
    await call("DELETE", imagePath(name));
  } catch (error) {
    if (error.status !== 404) return void toast(error.message, "error");
  }
  list = list.filter((each) => each.name !== name);
  onDeleted(name);
  if (!list.length) return void $("viewer").close();
  index = Math.min(index, list.length - 1);
  show();
}
