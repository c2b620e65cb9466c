// A picture on a larger canvas: the frame is dragged outwards, and a mask lies over the new border.

import { $, button, h, loadImage, say } from "./dom.js";
import { style } from "./late_style.js";
import { limits } from "./sizes.js";

const SIDES = ["left", "top", "right", "bottom"];
const HANDLES = [["left"], ["top"], ["right"], ["bottom"], ["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]];
const ROOM = 1.4; // of the frame within the area, to drag it into

/** {image, mask, size} with data: URLs; null for none. */
export async function extendPicture(url) {
  await style();
  const picture = fitted(await loadImage(url));
  if (!$("extend-frame")) document.body.append(make());
  const frame = new Frame(picture);
  const dialog = $("extender");
  return new Promise((resolve) => {
    let made = null;
    $("extend-done").onclick = () => { made = frame.made(); dialog.close(); };
    dialog.onclose = () => { window.removeEventListener("resize", refit); resolve(made); };
    const refit = () => frame.refit();
    window.addEventListener("resize", refit);
    dialog.showModal();
    frame.refit();
    $("extend-left").focus();
  });
}

/** On a canvas of its own; smaller if it leaves no room for a border. */
function fitted(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const { max_side: side, max_pixels: pixels } = limits();
  const full = Math.max(width, height) >= side || width * height >= pixels;
  const scale = full ? Math.min(0.75 * side / Math.max(width, height), Math.sqrt(pixels / 2 / (width * height))) : 1;
  const canvas = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const make = () => h("dialog", { id: "extender", "aria-labelledby": "extend-title" },
  h("div", { class: "bar" }, h("h2", { id: "extend-title" }, "Extend the picture"), button("×", () => $("extender").close(), { class: "close icon", "aria-label": "Close without changes" })),
  h("div", { id: "extend-area" }, h("div", { id: "extend-frame" }, ...HANDLES.map((sides) => h("div", { class: "handle", "data-sides": sides.join(" ") })))),
  h("div", { class: "row tools" }, ...SIDES.map((side) => h("label", {}, side[0].toUpperCase() + side.slice(1), h("input", { type: "number", id: `extend-${side}`, min: 0, inputmode: "numeric" }))),
    button("All around", null, { id: "extend-around" })),
  h("div", { class: "bar foot" }, h("p", { class: "hint", id: "extend-hint", role: "status" }), button("Use this frame", null, { class: "primary", id: "extend-done" })));

class Frame {
  constructor(picture) {
    this.picture = picture;
    this.border = { left: 0, top: 0, right: 0, bottom: 0 };
    $("extend-frame").querySelector("canvas")?.remove();
    $("extend-frame").prepend(picture);
    for (const side of SIDES) {
      $(`extend-${side}`).step = limits().size_multiple;
      $(`extend-${side}`).oninput = ({ target }) => { this.set(side, Number(target.value)); this.refit(); };
      $(`extend-${side}`).onchange = ({ target }) => { target.value = this.border[side]; };
    }
    $("extend-around").onclick = () => {
      for (const side of SIDES) this.set(side, this.border[side] + Math.min(picture.width, picture.height) / 8);
      this.refit();
    };
    for (const handle of $("extend-frame").querySelectorAll(".handle")) handle.onpointerdown = (event) => this.drag(event, handle);
  }

  get size() {
    const { left, top, right, bottom } = this.border;
    return [this.picture.width + left + right, this.picture.height + top + bottom];
  }

  set(side, pixels) {
    const { size_multiple: multiple } = limits();
    this.border[side] = Math.max(0, Math.round((pixels || 0) / multiple) * multiple);
  }

  /** The whole frame in the middle of the area, with room around it. */
  refit() {
    const [width, height] = this.size;
    const { clientWidth, clientHeight } = $("extend-area");
    this.scale = Math.min(clientWidth / width, clientHeight / height) / ROOM;
    this.origin = [(clientWidth - width * this.scale) / 2 + this.border.left * this.scale, (clientHeight - height * this.scale) / 2 + this.border.top * this.scale];
    this.draw();
  }

  draw() {
    const { border, scale, origin, size: [width, height] } = this;
    Object.assign($("extend-frame").style, {
      left: `${origin[0] - border.left * scale}px`, top: `${origin[1] - border.top * scale}px`, width: `${width * scale}px`, height: `${height * scale}px`,
    });
    Object.assign(this.picture.style, {
      left: `${border.left * scale}px`, top: `${border.top * scale}px`, width: `${this.picture.width * scale}px`, height: `${this.picture.height * scale}px`,
    });
    for (const side of SIDES) if ($(`extend-${side}`) !== document.activeElement) $(`extend-${side}`).value = border[side];
    const { max_side: side, max_pixels: pixels } = limits();
    const large = Math.max(width, height) > side || width * height > pixels;
    $("extend-done").disabled = large || !SIDES.some((each) => border[each]);
    $("extend-hint").className = large ? "error" : "hint";
    say($("extend-hint"), large ? `${width} × ${height} is too large for this model: at most ${side} a side, ${Math.floor(Math.sqrt(pixels))} × ${Math.floor(Math.sqrt(pixels))} in all.`
      : `${width} × ${height}. Drag the edges outwards; the picture itself stays as it is.`);
  }

  /** The picture stays where it is while an edge is dragged. */
  drag(event, handle) {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    const begun = { ...this.border };
    handle.onpointermove = ({ clientX, clientY }) => {
      const [x, y] = [(clientX - event.clientX) / this.scale, (clientY - event.clientY) / this.scale];
      const moved = { left: -x, right: x, top: -y, bottom: y };
      for (const side of handle.dataset.sides.split(" ")) this.set(side, begun[side] + moved[side]);
      this.draw();
    };
    handle.onpointerup = handle.onpointercancel = () => {
      handle.onpointermove = null;
      this.refit();
    };
  }

  made() {
    return { image: this.extended().toDataURL("image/png"), mask: this.mask().toDataURL("image/png"), size: this.size };
  }

  /** The picture, with its outermost pixels drawn out to the border. */
  extended() {
    const [canvas, context] = blank(this.size);
    const { picture: { width, height }, border: { left, top, right, bottom } } = this;
    const columns = [[0, 1, 0, left], [0, width, left, width], [width - 1, 1, left + width, right]];
    const lines = [[0, 1, 0, top], [0, height, top, height], [height - 1, 1, top + height, bottom]];
    for (const [x, wide, toX, toWide] of columns) {
      for (const [y, high, toY, toHigh] of lines) {
        if (toWide && toHigh) context.drawImage(this.picture, x, y, wide, high, toX, toY, toWide, toHigh);
      }
    }
    return canvas;
  }

  /** White where the picture is to be drawn. */
  mask() {
    const [canvas, context] = blank(this.size);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#000";
    context.fillRect(this.border.left, this.border.top, this.picture.width, this.picture.height);
    return canvas;
  }
}

function blank([width, height]) {
  const canvas = h("canvas", { width, height });
  return [canvas, canvas.getContext("2d")];
}
