// The tiles of the gallery: of however many pictures only those near what is seen are in the page.

import { $ } from "./dom.js";

const BEYOND = 1200; // px above and below the view, where tiles are in the page already
const tiles = new Map(); // name -> element
let pictures = []; // items, the newest first
let make = () => {};
let drawing = null;

/** `makeTile(item)` gives an <li>, which is square. */
export function start(makeTile) {
  make = makeTile;
  const later = () => { drawing ??= requestAnimationFrame(draw); };
  window.addEventListener("scroll", later, { passive: true });
  new ResizeObserver(later).observe($("gallery"));
}

/** What is to be shown. */
export function show(items) {
  pictures = items;
  draw();
}

/** The rows near the view; room is kept for the others. */
function draw() {
  drawing = null;
  const list = $("gallery");
  if (!list.clientWidth) return; // nobody looks
  const { gridTemplateColumns, rowGap } = getComputedStyle(list);
  const columns = gridTemplateColumns.split(" ");
  const row = parseFloat(columns[0]) + parseFloat(rowGap);
  const rows = Math.ceil(pictures.length / columns.length);
  const above = -list.getBoundingClientRect().top;
  const at = (place) => Math.min(rows, Math.max(0, Math.floor(place / row)));
  const [first, last] = [at(above - BEYOND), at(above + innerHeight + BEYOND + row)];
  place(list, first * columns.length, last * columns.length);
  list.style.paddingTop = `${first * row}px`;
  list.style.paddingBottom = `${(rows - last) * row}px`;
}

/** The pictures from one to another, in order; the focus does not go with a tile that goes. */
function place(list, from, to) {
  const wanted = pictures.slice(from, to);
  const names = new Set(wanted.map(({ name }) => name));
  const focused = list.contains(document.activeElement);
  for (const [name, element] of tiles) {
    if (names.has(name)) continue;
    element.remove();
    tiles.delete(name);
  }
  wanted.forEach((item, index) => {
    if (!tiles.has(item.name)) tiles.set(item.name, make(item));
    const element = tiles.get(item.name);
    [element.ariaPosInSet, element.ariaSetSize] = [from + index + 1, pictures.length];
    const there = list.children[index];
    if (there !== element) list.insertBefore(element, there ?? null);
  });
  if (focused && !list.contains(document.activeElement)) list.focus({ preventScroll: true });
}
