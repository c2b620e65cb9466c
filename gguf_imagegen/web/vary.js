// Another picture like a finished one: the same with small changes, or one that starts from it.

import { apply, load } from "./create.js";
import { $, toCreate } from "./dom.js";
import { replace, useMade } from "./inputs.js";
import { pick } from "./picker.js";
import { named } from "./settings.js";

const SUBTLE = { name: "Small changes", hint: "The same seed, with a little of another one's noise" };
const ANEW = { name: "Start from it", hint: "This picture as input, with its settings and a new seed" };
const LITTLE = 0.2; // of another seed's noise: the composition stays

/** Ask which, where the engine mixes noise, `leave()` what is open, and fill the form; `complete(item)` has all settings. */
export async function vary(item, path, complete, leave) {
  const way = $("variation-field").hidden ? ANEW.name : await pick("Vary", [SUBTLE, ANEW], false);
  if (!way) return;
  await complete(item);
  leave();
  if (way === SUBTLE.name) {
    $("more").open = true; // with what is different
    return void load({ ...item.parameters, "Variation seed": "", "Variation seed strength": LITTLE }, item.source);
  }
  apply(named({ ...item.parameters, Seed: undefined, "Variation seed strength": undefined }));
  replace();
  await useMade(path);
  toCreate($("prompt"));
}
