// Small helpers for the page: elements, messages, questions, and numbers in words.

export const $ = (id) => document.getElementById(id);

/** An element: `h("button", {type: "button", onclick}, "Text", child)`; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const button = (text, onclick, attributes = {}) =>
  h("button", { type: "button", onclick, ...attributes }, text);

/** A button of a few to choose from; what it does is an input of its form. */
export const chip = (text, act, attributes = {}) => button(text, ({ target }) => {
  act();
  target.dispatchEvent(new Event("input", { bubbles: true }));
}, { class: "chip", "aria-pressed": "false", ...attributes });

/** Whether a button that stays down is down; `press(element, true)` presses it. */
export const pressed = (element) => element.getAttribute("aria-pressed") === "true";
export const press = (element, down) => element.setAttribute("aria-pressed", String(down));

/** Text that is set only when it differs: what is selected or read aloud stays undisturbed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Messages must be in the open dialog, because what is behind one can be neither reached nor heard. */
const front = () => [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;

/** A message in a corner, with [label, act] as what can be done; long ones stay longer, and any can be sent away. */
export function toast(text, kind = "info", [label, act] = []) {
  const undo = label ? button(label, () => { box.remove(); act(); }, { class: "act" }) : null;
  const box = h("p", { class: `toast ${kind}` }, h("span", {}, text), undo, button("×", () => box.remove(), { "aria-label": "Dismiss" }));
  front().append($("toasts"));
  $("toasts").append(box);
  while ($("toasts").childElementCount > 4) $("toasts").firstElementChild.remove();
  setTimeout(() => box.remove(), label || kind === "error" ? 15000 : 5000);
}

document.addEventListener("close", () => front().append($("toasts")), true);

/** Said to those who do not see the page. */
export const announce = (text) => { $("announce").textContent = text; };

/** What a model needs of memory beside what is free; a part of that is left to others. */
export const needWords = ({ needs, free, usable, fits }) =>
  `needs ${bytes(needs)} of memory, ${fits ? `${bytes(free)} are free` : `${bytes(usable)} of the ${bytes(free)} that are free may be used`}`;

/** The form, and the focus on something in it; what is not shown yet cannot take the focus. */
export function toCreate(element) {
  if ($("view-create").hidden) window.addEventListener("hashchange", () => element.focus(), { once: true });
  else element.focus();
  location.hash = "#/create";
}

/** A question before something is lost; true if it shall be. */
export function ask(title, text, verb) {
  const dialog = $("ask");
  [$("ask-title").textContent, $("ask-text").textContent, $("ask-yes").textContent] = [title, text, verb];
  return new Promise((resolve) => {
    $("ask-yes").onclick = () => dialog.close("yes");
    $("ask-no").onclick = () => dialog.close("no");
    dialog.returnValue = "no";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}

export async function copy(text, what, more = "") {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // pages without https have no such clipboard
    if (!copyBySelecting(text)) return toast("The browser does not let this page copy; select the text instead.", "error");
  }
  return toast(`${what} copied.${more}`);
}

function copyBySelecting(text) {
  const focused = document.activeElement;
  const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  front().append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

export const seconds = (value) => {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${(whole / 3600).toFixed(1)} h`;
};

export const bytes = (count) =>
  count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(count / 1e6))} MB`;

/** A file as a data: URL. */
export const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

/** A picture, loaded, of any URL that the page may show. */
export async function loadImage(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new Error("The browser cannot show this picture.");
  }
  return image;
}
