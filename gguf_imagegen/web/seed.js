// The seed: empty or -1 draws a new one for every run, a locked one is used for every run.

import { $, press, pressed } from "./dom.js";
import { kept } from "./store.js";

const WRONG = "Enter a whole number, or -1 for a random one.";
const field = () => $("seed");
const isNumber = () => /^\s*\d+\s*$/.test(field().value);

export function start() {
  field().value = kept.get("seed", "");
  lock(kept.get("locked", false) && isNumber());
  field().oninput = () => lock(isNumber());
  $("lock").onclick = () => {
    const on = !pressed($("lock"));
    if (on && !isNumber()) field().value = crypto.getRandomValues(new Uint32Array(1))[0];
    lock(on);
    remember();
  };
}

/** A locked seed is used for every picture; another shows what was drawn last. */
function lock(on) {
  const wrong = !isNumber() && !["", "-1"].includes(field().value.trim());
  field().setCustomValidity(wrong ? WRONG : "");
  press($("lock"), on);
  field().classList.toggle("idle", !on && !wrong);
  $("seed-hint").textContent = wrong ? WRONG : on ? "The same for every run."
    : isNumber() ? "Last used. The next run gets a new one; Lock keeps it." : "A new one for every run.";
}

/** The field of a request; undefined for a new one. */
export const wanted = () => (pressed($("lock")) ? Number(field().value) : undefined);

/** What the server has drawn. */
export function drawn(seed) {
  if (pressed($("lock"))) return;
  field().value = seed;
  lock(false);
  remember();
}

/** Use this one; none if it is empty. */
export function set(seed) {
  field().value = seed ?? "";
  lock(isNumber());
}

export function remember() {
  kept.set("seed", field().value);
  kept.set("locked", pressed($("lock")));
}
