// The style of what is read when it is first opened.

import { h } from "./dom.js";

let loaded = null;

/** Resolves when it is there; without it everything still works. */
export function style() {
  loaded ??= new Promise((resolve) => {
    document.head.append(h("link", { rel: "stylesheet", href: "web/late.css", onload: resolve, onerror: resolve }));
  });
  return loaded;
}
