// The tail of the server's log, for admins, followed while somebody looks at the server.

import { call, stream } from "./api.js";
import { $, h } from "./dom.js";

const MOST = 500; // lines, as many as the server keeps
let admin = null; // whether the key is an administrator's; null until the server was asked
let following = null; // what ends it
let drawing = null;
let news = []; // lines to draw

/** From the lines that the server has kept on; does nothing if it goes on already. */
export async function follow() {
  if (following || admin === false) return;
  following = new AbortController();
  try {
    admin ??= (await call("GET", "/v1/me")).admin;
    $("log-part").hidden = !admin;
    if (admin) await read(following.signal);
  } catch { /* the view says that the server is away, and comes back here */ }
  following = null;
}

/** Nobody looks any more. */
export const leave = () => following?.abort();

async function read(signal) {
  $("log-warnings").onchange = () => { $("log").classList.toggle("warnings", $("log-warnings").checked); toEnd(); };
  let first = true;
  for await (const line of stream("GET", "/v1/logs/events", { signal })) {
    if (!line) continue;
    if (first) $("log").replaceChildren();
    first = false;
    news.push(line);
    drawing ??= requestAnimationFrame(draw);
  }
}

/** New lines go to the end, and so does who was there. */
function draw() {
  drawing = null;
  const log = $("log");
  const stays = log.scrollHeight - log.scrollTop - log.clientHeight > 40;
  log.append(...news.splice(0).map(row));
  while (log.childElementCount > MOST) log.firstElementChild.remove();
  if (!stays) toEnd();
}

const toEnd = () => { $("log").scrollTop = $("log").scrollHeight; };

function row({ created, level, message }) {
  const time = new Date(created * 1000);
  return h("li", { "data-level": level }, h("time", { datetime: time.toISOString() }, time.toLocaleTimeString()), ` ${level} ${message}`);
}
