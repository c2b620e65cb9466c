// A dialog that finds one of many names.

import { $, button, h, say } from "./dom.js";
import { style } from "./late_style.js";

/** The name of the chosen one of `items`, {name, hint}; null for none. A few need no field to search them. */
export async function pick(title, items, search = true) {
  await style();
  if (!$("picker")) document.body.append(make());
  const dialog = $("picker");
  $("picker-title").textContent = title;
  $("picker-find").value = "";
  $("picker-find").parentElement.hidden = $("picker-hint").hidden = !search;
  return new Promise((resolve) => {
    let chosen = null;
    const choose = (name) => { chosen = name; dialog.close(); };
    const draw = () => {
      const words = $("picker-find").value.toLowerCase().split(/\s+/);
      const found = items.filter(({ name, hint }) => words.every((word) => `${name} ${hint}`.toLowerCase().includes(word)));
      $("picker-list").replaceChildren(...found.map(({ name, hint }) => h("li", {}, h("button", { type: "button", onclick: () => choose(name) }, h("span", {}, name), hint ? h("small", {}, hint) : null))));
      say($("picker-hint"), found.length ? `${found.length} of ${items.length}` : "No match.");
    };
    $("picker-find").oninput = draw;
    $("picker-find").onkeydown = (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      $("picker-list").querySelector("button")?.click();
    };
    dialog.onclose = () => resolve(chosen);
    draw();
    dialog.showModal();
    (search ? $("picker-find") : $("picker-list").querySelector("button")).focus();
  });
}

const make = () => h("dialog", { id: "picker", "aria-labelledby": "picker-title" },
  h("div", { class: "bar" }, h("h2", { id: "picker-title" }), button("×", () => $("picker").close(), { class: "close icon", "aria-label": "Close" })),
  h("label", {}, "Find", h("input", { type: "search", id: "picker-find" })),
  h("p", { class: "hint", id: "picker-hint", role: "status" }),
  h("ul", { id: "picker-list" }));
