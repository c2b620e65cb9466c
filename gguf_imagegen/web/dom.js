// Small helpers for the page: elements, messages, and values that outlive a reload.

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

/** A message in a corner; errors stay longer. */
export function toast(text, kind = "info") {
  const box = h("p", { class: `toast ${kind}` }, text);
  $("toasts").append(box);
  setTimeout(() => box.remove(), kind === "error" ? 12000 : 5000);
}

/** Said to those who do not see the page. */
export const announce = (text) => { $("announce").textContent = text; };

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    toast("The browser does not let this page copy; select the text instead.", "error");
  }
}

/** What the browser keeps for this page. */
export const kept = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`imagegen.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`imagegen.${name}`, JSON.stringify(value));
    } catch { /* storage is off or full: nothing is remembered */ }
  },
};

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
