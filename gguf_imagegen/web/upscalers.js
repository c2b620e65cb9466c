// What enlarges a finished picture, and a picture between its passes.

import { $, h } from "./dom.js";
import { choose as chooseOption } from "./settings.js";
import { kept } from "./store.js";

const LATENT = ["latent", "latent_nearest", "latent_bicubic", "lanczos", "nearest"]; // for the second pass, without a file
let offered = "";

/** The files of the server; `usual` is for the second pass unless another is chosen. */
export function offer(names, usual) {
  if (JSON.stringify(names) === offered) return;
  offered = JSON.stringify(names);
  $("upscale-field").hidden = !names.length;
  const value = kept.get("upscale", "");
  $("upscale").replaceChildren(h("option", { value: "" }, "No"), ...names.flatMap((name) =>
    [2, 4].map((factor) => h("option", { value: `${factor} ${name}` }, `${factor}× with ${name}`))));
  chooseOption($("upscale"), value);
  const second = $("hires_upscaler").value || usual;
  $("hires_upscaler").replaceChildren(...[...LATENT, ...names].map((name) => h("option", { value: name }, name.replaceAll("_", " "))));
  chooseOption($("hires_upscaler"), second);
}

/** "2 name", or none; the names that are not here. */
export function choose(upscale = "") {
  const [factor, upscaler] = upscale.split(/ (.*)/);
  const there = [...$("upscale").options].map((option) => option.value);
  if (upscale && !there.includes(upscale) && there.some((value) => value.split(/ (.*)/)[1] === upscaler)) {
    $("upscale").append(h("option", { value: upscale }, `${factor}× with ${upscaler}`));
  }
  $("upscale").value = "";
  return upscale && !chooseOption($("upscale"), upscale) ? [upscaler] : [];
}

/** The fields of a request. */
export function wanted() {
  const [factor, upscaler] = $("upscale-field").hidden ? [] : $("upscale").value.split(/ (.*)/);
  return factor ? { upscale: Number(factor), upscaler } : {};
}
