// The page: its views, what is read again when something changes, and the state of the connection.

import { call, forgetKey, hasKey } from "./api.js";
import * as create from "./create.js";
import { $, say, toast } from "./dom.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as viewer from "./viewer.js";
import * as watch from "./watch.js";

const VIEWS = ["create", "gallery", "models"];
const FRESH = 20000; // ms for which the models' states are believed while somebody looks
const LONG = 10000; // ms without the server after which more is said

function showView() {
  const asked = location.hash.replace(/^#\/?/, ""); // with the slash it is no element's id, so nothing scrolls or takes the focus
  const wanted = VIEWS.includes(asked) ? asked : "create";
  for (const name of VIEWS) {
    if (name !== wanted) $(`view-${name}`).hidden = true;
    const link = document.querySelector(`nav a[href="#/${name}"]`);
    if (name === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!$(`view-${wanted}`).hidden) return;
  $(`view-${wanted}`).hidden = false;
  window.scrollTo(0, 0);
  if (wanted === "gallery") gallery.enter();
  if (wanted === "models" && started) refresh();
}

let reading = null;
let readAt = 0;
let started = false;

/** Models and what belongs to them, read again; calls that come meanwhile share the answer. */
function refresh() {
  reading ??= read().finally(() => { reading = null; });
  return reading;
}

async function read() {
  readAt = Date.now();
  try {
    const [list, me, addons] = await Promise.all([
      call("GET", "/v1/models?all=true"), call("GET", "/v1/me"), call("GET", "/v1/addons"),
    ]);
    models.offer(list.data, me.admin);
    create.offer(list.data, addons);
    if (list.data.some((each) => ["loading", "pulling"].includes(each.meta.state))) setTimeout(refresh, 1000);
  } catch (error) {
    models.fail(error.message);
    if (error.status) toast(error.message, "error");
  }
  $("forget-key").hidden = !hasKey();
}

let lost = null; // the timer after which more is said

function connection({ type }) {
  if (type === "online") {
    clearTimeout(lost);
    lost = null;
    say($("connection"), "");
    if (started) refresh();
  } else if (!lost) {
    say($("connection"), "Reconnecting…");
    lost = setTimeout(() => say($("connection"), "Reconnecting… The server does not answer. Is it still running? What is shown may be old."), LONG);
  }
  document.body.classList.toggle("offline", type !== "online");
  if (window.scrollY < 100) window.scrollTo(0, 0); // the words push the page down
}

viewer.start(gallery.forget, gallery.readOn);
watch.start((job, index) => viewer.open(viewer.ofJob(job), job.pictures.slice(0, index).filter((each) => each.name).length));
create.start();
gallery.start();
models.start(refresh);
jobs.listen((job, event) => {
  if (!job) connection(event);
  else if (event.type === "loaded" || (event.type === "ended" && job.status !== "succeeded")) refresh();
});
window.addEventListener("hashchange", showView);
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); $("main").focus(); }; // the view stays
$("forget-key").onclick = forgetKey;
$("activity").onclick = () => requestAnimationFrame(() => $("watch").scrollIntoView());
setInterval(() => { if (!document.hidden && !document.body.classList.contains("offline") && Date.now() - readAt > FRESH) refresh(); }, 5000);
showView();
jobs.follow();
await refresh();
started = true;
