// The prompt as one types: what was sent before, Ctrl and an arrow key for the weight of words, "<" for LoRAs.

import { $, button, h } from "./dom.js";
import { kept } from "./store.js";

const MOST = 50; // prompts to remember
const STEP = 0.1; // of a weight
const OFFERED = 8; // names at once
let files = []; // {name, text, hint}: what "<" offers
let changed = () => {};

/** `onChange` when the prompt was changed from here. */
export function start(onChange) {
  changed = onChange;
  for (const field of [$("prompt"), $("negative")]) {
    field.addEventListener("keydown", (event) => {
      const step = { ArrowUp: STEP, ArrowDown: -STEP }[event.key];
      if (!step || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      weigh(field, step);
    });
  }
  $("prompts").addEventListener("toggle", (event) => { if (event.newState === "open") drawHistory(); });
  $("prompt").addEventListener("input", complete);
  $("prompt").addEventListener("keydown", choose);
  $("prompt").addEventListener("blur", () => { $("completions").hidden = true; });
  $("completions").onmousedown = (event) => { // before the prompt loses the focus
    event.preventDefault();
    const option = event.target.closest("[role=option]");
    if (option) insert(option);
  };
}

/** A prompt that was sent. */
export function remember(text) {
  kept.set("prompts", [text, ...kept.get("prompts", []).filter((each) => each !== text)].slice(0, MOST));
}

function drawHistory() {
  const before = kept.get("prompts", []);
  const use = (text) => { $("prompt").value = text; $("prompts").hidePopover(); changed(); $("prompt").focus(); };
  $("prompts").replaceChildren(...(before.length ? before.map((text) => button(text, () => use(text), { dir: "auto" })) : [h("p", { class: "hint" }, "Prompts that you generate appear here.")]));
}

/** "cat" to "(cat:1.1)", and on; at 1 without brackets. */
function weigh(field, step) {
  let { selectionStart: from, selectionEnd: to } = field;
  const { value } = field;
  if (from === to) [from, to] = wordAt(value, from);
  const text = value.slice(from, to);
  if (!text.trim()) return;
  const [outer, weight] = (value[from - 1] === "(" && value.slice(to).match(/^:(\d+(?:\.\d+)?)\)/)) || ["", "1"];
  const next = Math.max(0.1, Math.round(10 * (Number(weight) + step)) / 10);
  const start = outer ? from - 1 : from;
  field.setRangeText(next === 1 ? text : `(${text}:${next})`, start, to + outer.length);
  field.setSelectionRange(next === 1 ? start : start + 1, (next === 1 ? start : start + 1) + text.length);
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

function wordAt(value, at) {
  const before = value.slice(0, at).match(/[^\s,()<>:]*$/)[0].length;
  const after = value.slice(at).match(/^[^\s,()<>:]*/)[0].length;
  return [at - before, at + after];
}

/** New from the server: LoRAs with their trigger words, and textual inversions. */
export function offer({ loras, embeddings }) {
  files = [
    ...loras.filter((each) => !each.fault).map(({ name, trigger_words: words = [] }) => ({
      name, text: [`<lora:${name}:1>`, ...(words ?? [])].join(", "), hint: (words ?? []).join(", ") || "LoRA",
    })),
    ...embeddings.filter((each) => !each.fault).map(({ name }) => ({ name, text: `embedding:${name}`, hint: "Textual inversion" })),
  ];
}

/** What is typed after the last "<"; null if nothing is. */
const begun = () => $("prompt").value.slice(0, $("prompt").selectionStart).match(/<(?:lora:)?([^<>\n]*)$/);

function complete() {
  const [, typed] = begun() ?? [];
  const found = typed === undefined ? [] : files.filter(({ name }) => name.toLowerCase().includes(typed.toLowerCase())).slice(0, OFFERED);
  $("completions").hidden = !found.length;
  $("completions").replaceChildren(...found.map(({ name, text, hint }, index) =>
    h("li", { role: "option", id: `completion-${index}`, "aria-selected": index === 0, "data-text": text }, name, h("small", {}, hint))));
  mark(0);
}

function mark(index) {
  const options = [...$("completions").children];
  options.forEach((each, at) => each.setAttribute("aria-selected", String(at === index)));
  if (options[index] && !$("completions").hidden) $("prompt").setAttribute("aria-activedescendant", options[index].id);
  else $("prompt").removeAttribute("aria-activedescendant");
}

function choose(event) {
  if ($("completions").hidden || event.ctrlKey || event.metaKey) return;
  const options = [...$("completions").children];
  const at = options.findIndex((each) => each.getAttribute("aria-selected") === "true");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) mark((at + step + options.length) % options.length);
  else if (event.key === "Enter" || event.key === "Tab") insert(options[at]);
  else if (event.key === "Escape") $("completions").hidden = true;
  else return;
  event.preventDefault();
}

function insert(option) {
  const at = $("prompt").selectionStart;
  $("prompt").setRangeText(option.dataset.text, at - begun()[0].length, at, "end");
  $("completions").hidden = true;
  mark(-1);
  changed();
}
