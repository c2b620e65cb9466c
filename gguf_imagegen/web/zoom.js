// How large the viewer's picture is: as large as fits, pixel for pixel, or as two fingers spread it; a swipe goes on.

import { $, press, pressed } from "./dom.js";

const SWIPE = 60; // px to the side, and twice as far as up or down
const MOST = 8; // pixels of the screen for one of the picture
let zoom = null; // pixels of the screen for one of the picture; null for as large as fits
let fits = 1; // the same, of what fits
let touch = null; // where fingers came down

/** `go(step)` shows another picture. */
export function start(go) {
  const figure = $("viewer-figure");
  $("viewer-zoom").onclick = () => set(pressed($("viewer-zoom")) ? null : 1);
  figure.ondblclick = () => { if (picture()) set(zoom ? null : 1); };
  figure.ontouchstart = begin;
  figure.addEventListener("touchmove", spread, { passive: false });
  figure.ontouchend = (event) => {
    const step = swiped(event);
    touch = null;
    if (step) go(step);
  };
  new ResizeObserver(sharpen).observe(figure);
}

const picture = () => $("viewer-figure").querySelector(":scope > img");
const scale = (image) => devicePixelRatio * Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);

/** So large; null for as large as fits. What has not come yet takes its size when `redraw` says that it has. */
export function set(next) {
  zoom = next;
  press($("viewer-zoom"), zoom === 1);
  $("viewer-figure").classList.toggle("actual", zoom !== null);
  redraw();
}

export function redraw() {
  const image = picture();
  if (image) image.style.width = zoom && image.naturalWidth ? `${zoom * image.naturalWidth / devicePixelRatio}px` : "";
  sharpen();
}

/** Beyond its own size a picture shows its pixels, not a guess at what is between them. */
function sharpen() {
  for (const image of $("viewer-figure").querySelectorAll("img")) {
    image.classList.toggle("pixelated", image.naturalWidth > 0 && scale(image) > 1.001);
  }
  if (picture()?.naturalWidth && zoom === null) fits = scale(picture());
}

const apart = ([one, two]) => Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);

function begin({ touches }) {
  const [{ clientX: x, clientY: y }] = touches;
  const image = picture();
  if (touches.length === 1) touch = { x, y };
  else touch = image?.naturalWidth ? { distance: apart(touches), zoom: scale(image) } : null;
}

/** The point between the fingers stays where it is. */
function spread(event) {
  if (!touch?.distance || event.touches.length !== 2) return;
  if (event.cancelable) event.preventDefault(); // else the page scrolls already
  const [one, two] = event.touches;
  const [x, y] = [(one.clientX + two.clientX) / 2, (one.clientY + two.clientY) / 2];
  const before = picture().getBoundingClientRect();
  const next = Math.min(touch.zoom * apart(event.touches) / touch.distance, Math.max(MOST, fits));
  set(next > fits ? next : null);
  const after = picture().getBoundingClientRect();
  $("viewer-figure").scrollBy(after.left + (x - before.left) / before.width * after.width - x, after.top + (y - before.top) / before.height * after.height - y);
}

/** 1 for a swipe to the next picture, -1 to the one before, 0 for none. */
function swiped({ changedTouches, touches }) {
  if (zoom !== null || !picture() || touch?.x === undefined || touches.length) return 0;
  const [{ clientX, clientY }] = changedTouches;
  const [across, down] = [clientX - touch.x, Math.abs(clientY - touch.y)];
  return Math.abs(across) > SWIPE && Math.abs(across) > 2 * down ? -Math.sign(across) : 0;
}
