// A mask painted over a picture: white where it should change, as tall and wide as the picture itself.

import { $ } from "./dom.js";

const UNDO = 30;

/** The mask as a data: URL, null for none; `before` is one to go on with. */
export async function paintMask(url, before) {
  const picture = await load(url);
  const [below, above] = [$("mask-picture"), $("mask-paint")];
  for (const canvas of [below, above]) [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  below.getContext("2d").drawImage(picture, 0, 0);
  const paint = above.getContext("2d", { willReadFrequently: true });
  paint.lineCap = paint.lineJoin = "round";
  paint.strokeStyle = paint.fillStyle = "#fff";
  if (before) await drawMask(paint, before);
  const steps = [];
  let last = null;

  const keep = () => { steps.push(paint.getImageData(0, 0, above.width, above.height)); steps.splice(0, steps.length - UNDO); };
  const place = (event) => {
    const box = above.getBoundingClientRect();
    return [(event.clientX - box.left) * above.width / box.width, (event.clientY - box.top) * above.height / box.height];
  };
  const brush = () => Number($("brush").value) * Math.max(above.width, above.height) / 800;
  const stroke = (from, to) => {
    paint.globalCompositeOperation = $("mask-erase").getAttribute("aria-pressed") === "true" ? "destination-out" : "source-over";
    paint.lineWidth = brush();
    paint.beginPath();
    paint.moveTo(...from);
    paint.lineTo(...to);
    paint.stroke();
  };
  above.onpointerdown = (event) => { above.setPointerCapture(event.pointerId); keep(); last = place(event); stroke(last, last); };
  above.onpointermove = (event) => {
    if (!last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) { const here = place(each); stroke(last, here); last = here; }
  };
  above.onpointerup = above.onpointercancel = () => { last = null; };
  $("mask-erase").onclick = () => $("mask-erase").setAttribute("aria-pressed", String($("mask-erase").getAttribute("aria-pressed") !== "true"));
  $("mask-undo").onclick = () => { const step = steps.pop(); if (step) paint.putImageData(step, 0, 0); };
  $("mask-clear").onclick = () => { keep(); paint.clearRect(0, 0, above.width, above.height); };
  $("mask-invert").onclick = () => {
    keep();
    paint.globalCompositeOperation = "xor";
    paint.fillRect(0, 0, above.width, above.height);
    harden(paint);
  };
  $("zoom").value = 1;
  const zoom = () => {
    const area = $("mask-area");
    const fit = Math.min(area.clientWidth / above.width, area.clientHeight / above.height);
    const scale = fit * Number($("zoom").value);
    $("mask-layers").style.width = `${above.width * scale}px`;
    $("mask-layers").style.height = `${above.height * scale}px`;
  };
  $("zoom").oninput = zoom;

  const dialog = $("mask");
  return new Promise((resolve) => {
    const close = (result) => { dialog.close(); resolve(result); };
    $("mask-done").onclick = () => close(exported(above, paint));
    $("mask-none").onclick = () => close(null);
    dialog.querySelector(".close").onclick = () => close(before);
    dialog.oncancel = () => resolve(before);
    dialog.showModal();
    zoom();
  });
}

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The browser cannot show this picture."));
    image.src = url;
  });
}

/** A mask of white on black as white on nothing. */
async function drawMask(paint, url) {
  paint.drawImage(await load(url), 0, 0);
  const pixels = paint.getImageData(0, 0, paint.canvas.width, paint.canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
  paint.putImageData(pixels, 0, 0);
}

/** No pixel half painted: soft edges would add up when inverted again and again. */
function harden(paint) {
  const pixels = paint.getImageData(0, 0, paint.canvas.width, paint.canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.fill(pixels.data[i + 3] > 127 ? 255 : 0, i, i + 4);
  paint.putImageData(pixels, 0, 0);
}

/** White on black; null if nothing is painted. */
function exported(canvas, paint) {
  harden(paint);
  if (!paint.getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value)) return null;
  paint.globalCompositeOperation = "destination-over";
  paint.fillStyle = "#000";
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.fillStyle = "#fff";
  return canvas.toDataURL("image/png");
}
