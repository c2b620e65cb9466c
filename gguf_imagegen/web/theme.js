// Light, dark, or as the system is.

import { $ } from "./dom.js";
import { kept } from "./store.js";

const THEMES = { system: "◐", light: "☀", dark: "☾" };
const NAMES = Object.keys(THEMES);

export function start() {
  show(kept.get("theme", "system"));
  $("theme").onclick = () => {
    const next = NAMES[(NAMES.indexOf(document.documentElement.dataset.theme) + 1) % NAMES.length];
    kept.set("theme", next);
    show(next);
  };
}

function show(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
  $("theme").title = `Theme: ${theme}`;
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
}
