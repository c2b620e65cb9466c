// A finished picture as the start of other work: a mask, a larger canvas, a ControlNet.

import { usePicture } from "./addons.js";
import { $, dataUrl, toast, toCreate } from "./dom.js";
import { useMade } from "./inputs.js";
import { pick } from "./picker.js";

const hasControl = () => $("control-field") && !$("control-field").hidden;

/** Ask where to, `leave()` what is open, and begin there. */
export async function sendTo(path, leave) {
  const places = [
    { name: "Inpaint", hint: "Paint a mask over what should change" },
    { name: "Extend", hint: "Put it on a larger canvas" },
    ...(hasControl() ? [{ name: "ControlNet", hint: "Follow its lines, depth or pose" }] : []),
  ];
  const place = await pick("Send to", places, false);
  if (!place) return;
  leave();
  if (place === "ControlNet") return void await control(path);
  await useMade(path);
  const begin = $({ Inpaint: "paint", Extend: "extend" }[place]);
  if (begin.hidden) toast("This model cannot draw a part of a picture anew. Choose one that does inpainting.", "error");
  else begin.click();
}

async function control(path) {
  const answer = await fetch(path).catch(() => null);
  if (!answer?.ok) return void toast("This picture is no longer on the server.", "error");
  await usePicture(await dataUrl(await answer.blob()));
  $("more").open = true;
  toCreate($("control-model"));
}
