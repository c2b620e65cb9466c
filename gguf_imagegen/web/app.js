// The page: its views, what is read again when something changes, and the state of the connection.

import { pictured, viewed } from "./address.js";
import { call, forgetKey, hasKey } from "./api.js";
import * as create from "./create.js";
import { $, say, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import * as theme from "./theme.js";
import * as watch from "./watch.js";

const VIEWS = ["create", "gallery", "models", "server"];
const FRESH = 20000; // ms for which the models' states are believed while somebody looks
const LONG = 10000; // ms without the server after which more is said

/** Parts that the first picture does not need: each is loaded, and started, when it is first used. */
const PARTS = {
  gallery: async () => {
    const gallery = await import("./gallery.js");
    gallery.start();
    return gallery;
  },
  models: async () => {
    const models = await import("./models.js");
    models.start(refresh);
    return models;
  },
  server: () => import("./server.js"),
  viewer: async () => (await Promise.all([import("./viewer.js"), part("gallery")]))[0], // it goes through the gallery
};
const parts = {};

/** A part of the page; what fails to load is tried again the next time. */
function part(name) {
  parts[name] ??= PARTS[name]().catch((error) => {
    parts[name] = null;
    throw error;
  });
  return parts[name];
}

async function use(name, act) {
  const found = await part(name).catch(() => toast("Cannot load this part of the page. Is the server running? Then reload the page.", "error"));
  if (found) act(found);
}

let shown = null;

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
  if (wanted !== shown) enter(wanted);
  if (picture || $("viewer").open) use("viewer", (viewer) => viewer.follow());
}

function enter(view) {
  shown = view;
  $(`view-${view}`).hidden = false;
  window.scrollTo(0, 0);
  if (view === "gallery") use("gallery", (gallery) => gallery.enter());
  if (view === "models" && started) refresh();
  if (view === "server") use("server", (server) => server.enter());
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
  const every = !$("view-models").hidden; // the whole catalog is long, and the form needs only what is here
  try {
    const [list, me, addons] = await Promise.all([
      call("GET", every ? "/v1/models?all=true" : "/v1/models"), call("GET", "/v1/me"), call("GET", "/v1/addons"),
    ]);
    if (every) use("models", (models) => models.offer(list.data, me.admin));
    create.offer(list.data, addons);
    if (list.data.some((each) => ["loading", "pulling"].includes(each.meta.state))) setTimeout(refresh, 1000);
  } catch (error) {
    if (every) use("models", (models) => models.fail(error.message));
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
watch.start((job, index) => use("viewer", (viewer) => viewer.openOf(job, index)));
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
started = true;
