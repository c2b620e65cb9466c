// The page: its views, what is read again when something changes, and the state of the connection.

import { pictured, viewed } from "./address.js";
import { forgetKey, hasKey } from "./api.js";
import * as create from "./create.js";
import { $, button, say, toast } from "./dom.js";
import { first, news } from "./first.js";
import * as jobs from "./jobs.js";
import * as theme from "./theme.js";
import * as watch from "./watch.js";

const VIEWS = ["create", "gallery", "models", "server"];
const FRESH = 20000; // ms for which the models' states are believed while somebody looks
const LONG = 10000; // ms without the server after which more is said
const SILENT = "The server is not responding. Is it running?";

let shown = null;
let lacking = false; // whether a view could not be read

/** Do something with a part of the page, which is read when it is first wanted; a view says in its `place` that it could not be. */
function later(read, place) {
  let part = null;
  return async (act) => {
    try {
      part ??= read();
      await part;
    } catch {
      part = null;
      if (!place) return toast(SILENT, "error");
      lacking = true;
      return $(place).replaceChildren(SILENT, " ", button("Try again", () => enter(shown), { class: "small" }));
    }
    return act(await part);
  };
}

const started = async (part, ...given) => { (await part).start(...given); return part; };
const gallery = later(() => started(import("./gallery.js")), "gallery-error");
const models = later(() => started(import("./models.js"), refresh), "models-hint");
const server = later(() => import("./server.js"), "server-error");
const viewer = later(async () => (await gallery(() => import("./viewer.js"))) ?? Promise.reject()); // it goes through the gallery, which starts it

function showView() {
  const picture = pictured().length > 0;
  const asked = picture ? history.state?.over ?? shown ?? "gallery" : viewed();
  const wanted = VIEWS.includes(asked) ? asked : "create";
  for (const name of VIEWS) {
    if (name !== wanted) $(`view-${name}`).hidden = true;
    const link = document.querySelector(`nav a[href="#/${name}"]`);
    if (name === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted !== shown) {
    document.querySelectorAll("dialog[open]:not(#viewer, #key)").forEach((each) => each.close()); // Back leads out of them
    enter(wanted);
  }
  if (picture || $("viewer").open) viewer((part) => part.follow());
}

function enter(view) {
  shown = view;
  $(`view-${view}`).hidden = false;
  window.scrollTo(0, 0);
  if (view === "gallery") gallery((part) => part.enter());
  if (view === "models" && ready) refresh();
  if (view === "server") server((part) => part.enter());
}

let reading = null;
let readAt = 0;
let early = first; // what was asked for before this module was here; null once it was read
let ready = false;

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
    const asked = every ? news("/v1/models?all=true") : early ?? news();
    early = null;
    const [list, me, addons] = await asked;
    if (every) await models((part) => part.offer(list.data, me.admin));
    create.offer(list.data, addons);
    if (list.data.some((each) => ["loading", "pulling"].includes(each.meta.state))) setTimeout(refresh, 1000);
  } catch (error) {
    if (!$("view-models").hidden) models((part) => part.fail(error.message));
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
    if (ready) refresh();
    if (lacking) enter(shown);
    lacking = false;
  } else if (!lost) {
    say($("connection"), "Reconnecting…");
    lost = setTimeout(() => say($("connection"), `Reconnecting… ${SILENT} This page may be out of date.`), LONG);
  }
  document.body.classList.toggle("offline", type !== "online");
  if (window.scrollY < 100) window.scrollTo(0, 0); // the words push the page down
}

theme.start();
watch.start((job, index) => viewer((part) => part.openOf(job, index)));
create.start();
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
ready = true;
