// The page: its views, what is read again when something changes, and the state of the connection.

import { call, forgetKey, hasKey } from "./api.js";
import * as create from "./create.js";
import { $, say, toast } from "./dom.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as server from "./server.js";
import * as theme from "./theme.js";
import * as viewer from "./viewer.js";
import * as watch from "./watch.js";

const VIEWS = ["create", "gallery", "models", "server"]; // and above one of them a picture, #/picture/NAME
const FRESH = 20000; // ms for which the models' states are believed while somebody looks
const LONG = 10000; // ms without the server after which more is said

let shown = null;

function showView() {
  const picture = viewer.addressed() !== null;
  const asked = picture ? history.state?.over ?? shown ?? "gallery" : location.hash.replace(/^#\/?/, ""); // with the slash it is no element's id, so nothing scrolls or takes the focus
  const wanted = VIEWS.includes(asked) ? asked : "create";
  for (const name of VIEWS) {
    if (name !== wanted) $(`view-${name}`).hidden = true;
    const link = document.querySelector(`nav a[href="#/${name}"]`);
    if (name === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted !== shown) enter(wanted);
  viewer.follow();
}

function enter(view) {
  shown = view;
  $(`view-${view}`).hidden = false;
  window.scrollTo(0, 0);
  if (view === "gallery") gallery.enter();
  if (view === "models" && started) refresh();
  if (view === "server") server.enter();
}

let reading = null;
let readAt = 0;
let started = false;

/** Models and what belongs to them, read again; calls that come meanwhile share the answer. */
function refresh() {
  const wanted = $("view-models").hidden ? "here" : "every";
  if (reading?.wanted !== wanted) {
    const answer = read().finally(() => { if (reading === answer) reading = null; });
    reading = Object.assign(answer, { wanted });
  }
  return reading;
}

async function read() {
  readAt = Date.now();
  try {
    const every = !$("view-models").hidden; // the whole catalog is long, and the form needs only what is here
    const [list, me, addons] = await Promise.all([
      call("GET", every ? "/v1/models?all=true" : "/v1/models"), call("GET", "/v1/me"), call("GET", "/v1/addons"),
    ]);
    if (every) models.offer(list.data, me.admin);
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
    lost = setTimeout(() => say($("connection"), "Reconnecting… The server is not responding. Is it running? This page may be out of date."), LONG);
  }
  document.body.classList.toggle("offline", type !== "online");
  if (window.scrollY < 100) window.scrollTo(0, 0); // the words push the page down
}

theme.start();
viewer.start(gallery);
watch.start((job, index) => viewer.open(viewer.ofJob(job), job.pictures.slice(0, index).filter((each) => each.name && !each.gone).length));
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
$("to-settings").onclick = (event) => { event.preventDefault(); $("model").scrollIntoView({ block: "center" }); $("model").focus(); };
$("activity").onclick = () => requestAnimationFrame(() => $("watch").scrollIntoView());
setInterval(() => { if (!document.hidden && !document.body.classList.contains("offline") && Date.now() - readAt > FRESH) refresh(); }, 5000);
showView();
jobs.follow();
await refresh();
started = true;
