// The catalog: what each model needs, what is here, pulling and loading it.

import { call, stream } from "./api.js";
import { $, announce, button, bytes, h, seconds, toast } from "./dom.js";

let models = [];
let changed = () => {};
const pulls = new Map(); // name -> {id, done, total, words}

const STATES = {
  loaded: "In memory", loading: "Loading", ready: "On this machine", absent: "Not here", pulling: "Being pulled",
  unsupported: "Cannot be run", partial: "Partly here", corrupt: "Damaged",
};

export function start(refresh) {
  changed = refresh;
  $("models-find").oninput = draw;
}

export function offer(list) {
  models = list;
  draw();
  for (const { id, meta } of list) if (meta.pulling.length && !pulls.has(id)) pull(id, meta.pulling.at(-1));
}

function draw() {
  const words = $("models-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = models.filter(({ id, meta }) => {
    const text = [id, meta.description, meta.family, ...meta.aliases].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const here = (each) => (["absent", "unsupported"].includes(each.meta.state) ? 1 : 0);
  found.sort((one, other) => here(one) - here(other));
  const focused = document.activeElement?.dataset?.act;
  $("models").replaceChildren(...found.map(card));
  if (!found.length) $("models").append(h("p", { class: "empty" }, "No model of this name."));
  if (focused) document.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
}

function card({ id, meta }) {
  const facts = [meta.family, meta.licence, meta.capabilities.join(", ")].filter(Boolean).join(" · ");
  const links = meta.links?.map((link) => h("a", { href: link, target: "_blank", rel: "noreferrer noopener" }, "Source and licence"));
  const pull = pulls.get(id);
  return h("article", { class: "model", "data-state": meta.state, "data-model": id },
    h("div", { class: "bar" }, h("h3", {}, id), h("span", { class: "badge" }, STATES[meta.state] || meta.state)),
    h("p", {}, meta.description), h("p", { class: "hint" }, facts, " ", ...(links || [])),
    meta.unsupported ? h("p", { class: "error" }, meta.unsupported) : null,
    meta.gated ? h("p", { class: "hint" }, "Its publisher wants the licence accepted first: follow the link, accept, and set HF_TOKEN on the server.") : null,
    meta.memory ? h("p", { class: meta.memory.fits ? "hint" : "warning" }, memoryWords(meta.memory)) : null,
    pull ? pullBar(id, pull) : null,
    h("div", { class: "row" }, ...actions(id, meta)));
}

function memoryWords({ needs, free, fits }) {
  return fits ? `Needs ${bytes(needs)} of memory, ${bytes(free)} are free.` : `Needs ${bytes(needs)} of memory, and only ${bytes(free)} are free.`;
}

function pullBar(id, pull) {
  return h("div", { class: "pull" },
    h("progress", { max: pull.total || 1, value: pull.done, "aria-label": `Pulling ${id}` }),
    h("span", {}, pull.words),
    button("Cancel", () => act(() => call("DELETE", `/v1/models/pull/${pull.id}`)), { class: "small", "data-act": `cancel ${id}` }));
}

function actions(id, meta) {
  const of = (label, method, path, attributes = {}) =>
    button(label, () => act(() => call(method, path)), { "data-act": `${label} ${id}`, "aria-label": `${label} ${id}`, ...attributes });
  const path = `/v1/models/${encodeURIComponent(id)}`;
  const buttons = [];
  if (meta.state === "ready") buttons.push(of("Load", "POST", `${path}/load`));
  if (meta.state === "loaded") buttons.push(of("Unload", "POST", `${path}/unload`));
  if (meta.pullable && !pulls.has(id)) {
    const quants = meta.quants.filter((quant) => quant.quant);
    const choice = quants.length > 1
      ? h("select", { "aria-label": `Quantisation of ${id}`, "data-act": `quant ${id}` }, h("option", { value: id }, "Best that fits"),
        ...quants.map((quant) => h("option", { value: quant.name }, quantWords(quant)))) : null;
    if (choice) buttons.push(choice);
    if (meta.state === "absent" || choice) {
      buttons.push(button("Pull", () => pull(id, choice ? choice.value : id), { class: "primary", "data-act": `Pull ${id}`, "aria-label": `Pull ${id}` }));
    }
  }
  if (meta.state === "ready" && meta.pullable) {
    buttons.push(button("Delete", () => window.confirm(`Delete the files of ${id} from this machine?`) && act(() => call("DELETE", path)),
      { class: "danger", "data-act": `Delete ${id}`, "aria-label": `Delete ${id}` }));
  }
  return buttons;
}

function quantWords({ quant, bytes: size, fits, on_disk: here }) {
  return [quant, size ? bytes(size) : "", here ? "here" : fits === false ? "does not fit" : ""].filter(Boolean).join(" · ");
}

async function act(what) {
  try {
    await what();
  } catch (error) {
    toast(error.message, "error");
  }
  changed();
}

async function pull(id, name) {
  pulls.set(id, { done: 0, total: 0, words: "Asking the hub…" });
  draw();
  try {
    for await (const frame of stream("POST", "/v1/models/pull", { body: { model: name, stream: true } })) {
      if (!frame) continue;
      if (frame.error) throw new Error(frame.error.message);
      const pulling = { ...pulls.get(id), ...progress(frame) };
      pulls.set(id, pulling);
      draw();
    }
    announce(`${id} is here.`);
    toast(`${id} is here.`);
  } catch (error) {
    toast(error.message, "error");
  }
  pulls.delete(id);
  changed();
}

function progress({ model, status, speed, eta, overall }) {
  const { done = 0, total = 0 } = overall || {};
  const words = [
    status === "downloading" ? "" : status, total ? `${bytes(done)} of ${bytes(total)}` : "", speed ? `${bytes(speed)}/s` : "",
    eta ? `${seconds(eta)} left` : "",
  ];
  return { id: model, done, total, words: words.filter(Boolean).join(", ") };
}
