// The "?" beside each setting: one sentence on what it does, below the setting.

import { announce, button, h } from "./dom.js";

/** A "?" for each setting within `root` that has none. */
export function offer(root) {
  for (const label of root.querySelectorAll("label:not(.setting > *, #prompt-field)")) {
    const field = label.querySelector("input, select, textarea") ?? label.control;
    if (!field?.id) continue;
    const place = h("div", { class: "setting" });
    label.replaceWith(place);
    place.append(label, ask(field.id, label.textContent.trim()));
  }
  for (const group of root.querySelectorAll("fieldset[data-help]")) {
    const legend = group.querySelector("legend");
    legend.after(ask(group.dataset.help, legend.textContent));
  }
}

function ask(name, title) {
  const mark = button("?", () => toggle(mark, name), { class: "help", "aria-label": `Help: ${title.replace(/\s+[\d.]*$/, "")}`, "aria-expanded": "false", "data-about": name });
  return mark;
}

async function toggle(mark, name) {
  const open = mark.getAttribute("aria-expanded") !== "true";
  mark.setAttribute("aria-expanded", String(open));
  const after = mark.closest(".setting")?.lastElementChild ?? mark;
  if (!open) return void document.getElementById(`help-${name}`)?.remove();
  const { HELP } = await import("./help_texts.js").catch(() => ({ HELP: {} }));
  if (mark.getAttribute("aria-expanded") !== "true" || document.getElementById(`help-${name}`)) return undefined;
  const text = HELP[name] ?? "The server is not responding. Is it running?";
  after.after(h("p", { class: "hint about", id: `help-${name}` }, text));
  mark.setAttribute("aria-describedby", `help-${name}`);
  return announce(text);
}
