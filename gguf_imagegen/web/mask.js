// A mask painted over a picture: white where it should change. What is painted is a list of deeds, so that each
// can be undone; the canvas is drawn from it.

import { $, ask, loadImage, press, pressed } from "./dom.js";
import { style } from "./late_style.js";

const INK = [226, 0, 122]; // seen on most pictures; the finished mask is white on black
const WHITE = [255, 255, 255];
const MOST = 2048; // pixels of the longest side; the server fits a mask to the picture
const TOGETHER = 300; // ms between two fingers that are put down at once
const STEP = 0.25; // of the brush, by which an arrow key moves it

/** The mask as a data: URL, null for none; `before` is one to go on with. */
export async function paintMask(url, before) {
  await style();
  const picture = await loadImage(url);
  const base = before ? await loadImage(before) : null;
  const canvas = makeCanvas(picture);
  const painting = new Painting(canvas, base);
  const cursor = new Cursor(canvas);
  takeStrokes(canvas, painting, cursor);
  takeKeys(canvas, painting, cursor);
  takeButtons(painting);
  takeZoom(canvas, picture, cursor);

  const dialog = $("mask");
  return new Promise((resolve) => {
    let result; // undefined: what is painted, also when the browser closes the dialog by itself
    const close = (mask) => { result = mask; dialog.close(); };
    const leave = async () => {
      if (!painting.deeds.length || await ask("Discard your changes?", "The mask stays as it was.", "Discard")) close(before);
    };
    $("mask-done").onclick = () => close();
    $("mask-none").onclick = () => close(null);
    dialog.querySelector(".close").onclick = leave;
    dialog.oncancel = (event) => { event.preventDefault(); leave(); };
    dialog.onclose = () => {
      if (result === undefined) result = painting.exported();
      canvas.width = canvas.height = $("mask-picture").width = $("mask-picture").height = 0;
      resolve(result);
    };
    dialog.showModal();
    $("zoom").oninput();
    $("mask-area").focus();
  });
}

/** The canvas to paint on, above one with the picture. */
function makeCanvas(picture) {
  const scale = Math.min(1, MOST / Math.max(picture.naturalWidth, picture.naturalHeight));
  for (const canvas of [$("mask-picture"), $("mask-paint")]) {
    canvas.width = Math.round(picture.naturalWidth * scale);
    canvas.height = Math.round(picture.naturalHeight * scale);
  }
  $("mask-picture").getContext("2d").drawImage(picture, 0, 0, $("mask-picture").width, $("mask-picture").height);
  return $("mask-paint");
}

class Painting {
  /** Deeds are {points, width, erase}, or the words "invert" and "clear". */
  constructor(canvas, base) {
    this.canvas = canvas;
    this.base = base;
    this.deeds = [];
    this.undone = [];
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    Object.assign(this.context, { lineCap: "round", lineJoin: "round", strokeStyle: `rgb(${INK})`, fillStyle: `rgb(${INK})` });
    this.redraw();
  }

  redraw() {
    this.clear();
    if (this.base) this.drawBase();
    this.deeds.forEach((deed) => this.draw(deed));
    this.offer();
  }

  /** Undo and Redo, where there is something to undo or redo. */
  offer() {
    for (const [name, deeds] of [["mask-undo", this.deeds], ["mask-redo", this.undone]]) {
      if (!deeds.length && document.activeElement === $(name)) $("mask-area").focus();
      $(name).disabled = !deeds.length;
    }
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** White on black as ink on nothing. */
  drawBase() {
    const { width, height } = this.canvas;
    this.context.globalCompositeOperation = "source-over";
    this.context.drawImage(this.base, 0, 0, width, height);
    this.change(INK, (data, i) => (data[i] > 127 ? 255 : 0));
  }

  /** Each pixel of this colour, and as opaque as `opacity(data, i)` says. */
  change(colour, opacity) {
    const pixels = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const { data } = pixels;
    for (let i = 0; i < data.length; i += 4) {
      data[i + 3] = opacity(data, i);
      [data[i], data[i + 1], data[i + 2]] = data[i + 3] ? colour : [0, 0, 0];
    }
    this.context.putImageData(pixels, 0, 0);
    return data;
  }

  do(deed) {
    this.deeds.push(deed);
    this.undone = [];
    this.draw(deed);
    this.offer();
  }

  undo() {
    this.move(this.deeds, this.undone);
  }

  redo() {
    this.move(this.undone, this.deeds);
  }

  move(from, to) {
    if (from.length) to.push(from.pop());
    this.redraw();
  }

  /** The last deed was no deed. */
  drop() {
    this.deeds.pop();
    this.redraw();
  }

  draw(deed) {
    if (deed === "clear") return this.clear();
    this.context.globalCompositeOperation = deed === "invert" ? "xor" : deed.erase ? "destination-out" : "source-over";
    if (deed === "invert") return this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    return deed.points.forEach((_, index) => this.line(deed, index));
  }

  /** The stroke from the point before to this one; a dot for the first, as a line without length has no caps. */
  line({ points, width }, index) {
    this.context.beginPath();
    if (index === 0) {
      this.context.arc(...points[0], width / 2, 0, 2 * Math.PI);
      this.context.fill();
      return;
    }
    this.context.lineWidth = width;
    this.context.moveTo(...points[index - 1]);
    this.context.lineTo(...points[index]);
    this.context.stroke();
  }

  /** Go on with the last stroke. */
  extend(point) {
    const stroke = this.deeds.at(-1);
    stroke.points.push(point);
    this.context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    this.line(stroke, stroke.points.length - 1);
  }

  /** White on black, with no pixel in between; null if nothing is painted. */
  exported() {
    const data = this.change(WHITE, (pixels, i) => (pixels[i + 3] > 127 ? 255 : 0));
    if (!data.some((value) => value)) return null;
    this.context.globalCompositeOperation = "destination-over";
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    return this.canvas.toDataURL("image/png");
  }
}

/** The ring that shows how large the brush is and where. */
class Cursor {
  constructor(canvas) {
    this.canvas = canvas;
    this.at = [canvas.width / 2, canvas.height / 2];
    $("brush").oninput = () => this.show();
  }

  /** The brush in pixels of the canvas: as wide as chosen on a picture of 800. */
  get width() {
    return Number($("brush").value) * Math.max(this.canvas.width, this.canvas.height) / 800;
  }

  move(to) {
    this.at = [Math.max(0, Math.min(this.canvas.width, to[0])), Math.max(0, Math.min(this.canvas.height, to[1]))];
    this.show();
  }

  show() {
    const { style } = $("mask-cursor");
    $("mask-cursor").hidden = false;
    style.left = `${100 * this.at[0] / this.canvas.width}%`;
    style.top = `${100 * this.at[1] / this.canvas.height}%`;
    style.width = `${100 * this.width / this.canvas.width}%`;
  }
}

const stroke = (cursor) => ({ points: [cursor.at], width: cursor.width, erase: pressed($("mask-erase")) });

function takeStrokes(canvas, painting, cursor) {
  let drawing = false;
  let began = 0;
  let moved = false; // whether the picture is, until all fingers are up
  const hands = new Map(); // pointers that move the picture: two fingers, or the middle button
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const drag = ({ pointerId, clientX, clientY }) => {
    const [x, y] = hands.get(pointerId);
    $("mask-area").scrollBy((x - clientX) / hands.size, (y - clientY) / hands.size);
    hands.set(pointerId, [clientX, clientY]);
  };
  canvas.onpointerdown = (event) => {
    if (event.button > 1) return;
    canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch" || event.button === 1) hands.set(event.pointerId, [event.clientX, event.clientY]);
    if (hands.size > 1 || event.button === 1) {
      if (drawing && event.timeStamp - began < TOGETHER) painting.drop(); // what the first finger painted meanwhile
      drawing = false;
      moved = true;
      return;
    }
    drawing = true;
    moved = false;
    began = event.timeStamp;
    cursor.move(place(event));
    painting.do(stroke(cursor));
  };
  canvas.onmousedown = (event) => { if (event.button === 1) event.preventDefault(); }; // else the browser scrolls, too
  canvas.onpointermove = (event) => {
    if (moved && hands.has(event.pointerId)) return void drag(event);
    cursor.move(place(event));
    if (!drawing) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) painting.extend(place(each));
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    hands.delete(event.pointerId);
    drawing = false;
  };
  canvas.onpointerleave = () => { $("mask-cursor").hidden = document.activeElement !== $("mask-area"); };
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function takeKeys(canvas, painting, cursor) {
  const area = $("mask-area");
  let line = false; // whether Shift has been held since the last stroke began
  area.onfocus = () => { if (area.matches(":focus-visible")) cursor.show(); };
  area.onblur = () => { $("mask-cursor").hidden = true; };
  area.onkeydown = (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow && event.key !== " ") return;
    event.preventDefault();
    if (!arrow) painting.do(stroke(cursor));
    else {
      if (event.shiftKey && !line) painting.do(stroke(cursor));
      const step = Math.max(1, cursor.width * STEP);
      cursor.move([cursor.at[0] + arrow[0] * step, cursor.at[1] + arrow[1] * step]);
      if (event.shiftKey) painting.extend(cursor.at);
      line = event.shiftKey;
    }
    const [x, y] = [cursor.at[0] / canvas.width, cursor.at[1] / canvas.height].map((part) => Math.round(100 * part));
    $("mask-said").textContent = `${arrow && !event.shiftKey ? "Brush" : "Painted"} at ${x} % across, ${y} % down`;
    $("mask-cursor").scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  area.onkeyup = (event) => { if (event.key === "Shift") line = false; };
  $("mask").onkeydown = (event) => {
    const key = event.key.toLowerCase();
    if (!["y", "z"].includes(key) || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) painting.redo();
    else painting.undo();
  };
}

function takeButtons(painting) {
  press($("mask-erase"), false);
  $("mask-erase").onclick = () => press($("mask-erase"), !pressed($("mask-erase")));
  $("mask-undo").onclick = () => painting.undo();
  $("mask-redo").onclick = () => painting.redo();
  $("mask-clear").onclick = () => painting.do("clear");
  $("mask-invert").onclick = () => painting.do("invert");
}

/** The picture fits at 1; what is in the middle stays there while zooming. */
function takeZoom(canvas, picture, cursor) {
  const [area, layers] = [$("mask-area"), $("mask-layers")];
  $("zoom").value = 1;
  $("zoom").oninput = () => {
    const middle = [(area.scrollLeft + area.clientWidth / 2) / layers.clientWidth, (area.scrollTop + area.clientHeight / 2) / layers.clientHeight];
    const fit = Math.min(area.clientWidth / canvas.width, area.clientHeight / canvas.height);
    const scale = fit * Number($("zoom").value);
    layers.style.width = `${canvas.width * scale}px`;
    layers.style.height = `${canvas.height * scale}px`;
    area.scrollLeft = middle[0] * layers.clientWidth - area.clientWidth / 2;
    area.scrollTop = middle[1] * layers.clientHeight - area.clientHeight / 2;
    if (!$("mask-cursor").hidden) cursor.show();
  };
  window.onresize = () => { if ($("mask").open) $("zoom").oninput(); };
  area.onwheel = (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    $("zoom").value = Number($("zoom").value) - Math.sign(event.deltaY) * 0.25;
    $("zoom").oninput();
  };
}
