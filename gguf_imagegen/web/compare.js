// Two pictures in one frame, with an edge between them to move.

import { h } from "./dom.js";

/** `before` on the left, `after` on the right, two <img>, and what the ends are called. */
export function comparison(before, after, [left, right], className = "") {
  const edge = h("span", { class: "edge" });
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, step: "any", "aria-label": `Where “${left}” ends and “${right}” begins` });
  const pair = h("div", { class: "pair" }, before, after, edge);
  slider.oninput = () => {
    after.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `${slider.value}%`;
  };
  slider.oninput();
  const drag = (event) => {
    if (!event.buttons) return;
    const { left: start, width } = pair.getBoundingClientRect();
    slider.value = 100 * (event.clientX - start) / width;
    slider.oninput();
  };
  [pair.onpointerdown, pair.onpointermove, pair.ondragstart] = [drag, drag, (event) => event.preventDefault()];
  return h("div", { class: `compare ${className}` }, pair,
    h("label", {}, h("span", { class: "ends" }, h("span", {}, left), h("span", {}, right)), slider));
}

/** What two pictures were made with, where it differs: [name, "left → right"]. */
export function differences(left, right) {
  const keys = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter((key) => String(left[key] ?? "") !== String(right[key] ?? ""));
  return keys.map((key) => [key, `${left[key] ?? "–"} → ${right[key] ?? "–"}`]);
}
