// Textual inversions, to put into a prompt, and the ControlNet of the next pictures, as far as the model takes them.

import { $, button, dataUrl, h, toast } from "./dom.js";

let embeddings = [];
let controlNets = [];
let picture = null; // data: URL, for the ControlNet

/** `changed` is called when the prompt has got a word. */
export function start(changed) {
  $("embeddings").onclick = ({ target }) => {
    if (!target.dataset.embedding) return;
    const field = $("negative-field").hidden || !$("embed-negative").checked ? $("prompt") : $("negative");
    field.value = [field.value.trim(), `embedding:${target.dataset.embedding}`].filter(Boolean).join(", ");
    changed();
  };
  $("control-file").onchange = async () => {
    const [file] = $("control-file").files;
    picture = file ? await dataUrl(file) : null;
  };
}

/** New from the server. */
export function offer(addons) {
  const usable = (list) => list.filter((each) => !each.fault);
  [embeddings, controlNets] = [usable(addons.embeddings), usable(addons.control_nets)];
}

/** What a model of this family takes. */
export function show(family) {
  const fitting = (list) => list.filter((each) => each.family === family.split("-")[0] && each.family !== "sdxl").map(({ name }) => name);
  const [words, nets] = [fitting(embeddings), fitting(controlNets)];
  $("embedding-field").hidden = !words.length;
  $("embed-negative-field").hidden = $("negative-field").hidden;
  $("control-field").hidden = !nets.length;
  const offered = JSON.stringify([words, nets]);
  if (offered === $("control-field").dataset.offered) return;
  $("control-field").dataset.offered = offered;
  $("embeddings").replaceChildren(...words.map((name) => button(name, null, { class: "chip", "data-embedding": name })));
  const before = $("control-model").value;
  $("control-model").replaceChildren(h("option", { value: "" }, "none"), ...nets.map((name) => h("option", {}, name)));
  if (nets.includes(before)) $("control-model").value = before;
}

/** The field `control` of a request. */
export function control() {
  if ($("control-field").hidden || !$("control-model").value) return undefined;
  if (!picture) {
    toast("No picture was chosen for the ControlNet, so it was left out.", "error");
    return undefined;
  }
  return {
    model: $("control-model").value,
    image: picture,
    strength: Number($("control-strength").value),
    preprocess: $("control-canny").checked ? "canny" : "none",
  };
}
