// The tiles of the gallery: of however many pictures only those near what is seen are in the page, and only
// those that stay there for a moment are fetched. A tile that goes becomes the next one that comes.

import { $ } from "./dom.js";

const BEYOND = 1200; // px above and below the view, where tiles are in the page already
const STAY = 100; // ms in the page after which a tile's picture is fetched: those that fly past are not
const tiles = new Map(); // by the picture's name
const free = []; // tiles of no picture
let pictures = []; // items, the newest first
let near = []; // those with a tile
let make = () => {};
let drawing = null;
let fetching = null;
let side = 0; // px of a tile

/** `makeTile()` gives {element, fill(item), look(side)}: a square <li>, for any picture, which is fetched when it is looked at. */
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
  fetchPictures();
}

/** The rows near the view; room is kept for the others. */
function draw() {
  drawing = null;
  const list = $("gallery");
  if (!list.clientWidth) return; // nobody looks
  const { gridTemplateColumns, rowGap } = getComputedStyle(list);
  const columns = gridTemplateColumns.split(" ");
  side = parseFloat(columns[0]);
  const row = side + parseFloat(rowGap);
  const rows = Math.ceil(pictures.length / columns.length);
  const above = -list.getBoundingClientRect().top;
  const at = (place) => Math.min(rows, Math.max(0, Math.floor(place / row)));
  const [first, last] = [at(above - BEYOND), at(above + innerHeight + BEYOND + row)];
  place(list, first * columns.length, last * columns.length);
  list.style.paddingTop = `${first * row}px`;
  list.style.paddingBottom = `${(rows - last) * row}px`;
  fetching ??= setTimeout(fetchPictures, STAY);
}

/** The pictures of the tiles that are there. */
function fetchPictures() {
  clearTimeout(fetching);
  fetching = null;
  for (const { name } of near) tiles.get(name).look(side);
}

/** The pictures from one to another, in order; the focus does not go with a tile that goes. */
function place(list, from, to) {
  near = pictures.slice(from, to);
  const names = new Set(near.map(({ name }) => name));
  const focused = list.contains(document.activeElement);
  for (const [name, tile] of tiles) {
    if (names.has(name)) continue;
    tile.element.remove();
    tiles.delete(name);
    free.push(tile);
  }
  near.forEach((item, index) => {
    if (!tiles.has(item.name)) tiles.set(item.name, tileOf(item));
    const { element } = tiles.get(item.name);
    [element.ariaPosInSet, element.ariaSetSize] = [from + index + 1, pictures.length];
    const there = list.children[index];
    if (there !== element) list.insertBefore(element, there ?? null);
  });
  if (focused && !list.contains(document.activeElement)) list.focus({ preventScroll: true });
}

function tileOf(item) {
  const tile = free.pop() ?? make();
  tile.fill(item);
  return tile;
}
