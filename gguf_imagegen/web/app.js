// The page: its views, what is read again when something changes, and the state of the connection.

import { call } from "./api.js";
import * as create from "./create.js";
import { $, toast } from "./dom.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as viewer from "./viewer.js";
import * as watch from "./watch.js";

const VIEWS = ["create", "gallery", "models"];
const RECENT = 8;

function showView() {
  const wanted = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "create";
  for (const name of VIEWS) {
    $(`view-${name}`).hidden = name !== wanted;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted === "gallery") gallery.enter();
  if (wanted === "models") refresh();
}

let reading = null;

/** Models and what belongs to them, read again; calls that come meanwhile share the answer. */
function refresh() {
  reading ??= read().finally(() => { reading = null; });
  return reading;
}

async function read() {
  try {
    const [list, loras, upscalers] = await Promise.all([
      call("GET", "/v1/models"), call("GET", "/sdapi/v1/loras"), call("GET", "/sdapi/v1/upscalers"),
    ]);
    models.offer(list.data);
    create.offer(list.data, loras.map((each) => each.name), upscalers.filter((each) => each.model_path || each.model_name).map((each) => each.name));
    if (list.data.some((each) => ["loading", "pulling"].includes(each.meta.state))) setTimeout(refresh, 1000);
  } catch (error) {
    if (error.status) toast(error.message, "error");
  }
}

function connection(event) {
  const offline = event.type === "offline";
  document.body.classList.toggle("offline", offline);
  $("connection").textContent = offline ? "Reconnecting…" : "";
  if (!offline) refresh();
}

viewer.start(gallery.forget);
watch.start((job, index) => viewer.open(viewer.ofJob(job), job.pictures.slice(0, index).filter((each) => each.name).length));
create.start();
gallery.start();
models.start(refresh);
jobs.listen((job, event) => {
  if (!job) connection(event);
  else if (event.type === "loaded" || event.type === "ended") refresh();
});
window.addEventListener("hashchange", showView);
showView();
await refresh();
jobs.recent(RECENT).catch(() => {});
jobs.follow();
