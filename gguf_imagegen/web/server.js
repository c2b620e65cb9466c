// The server: whether it is well, what each lane does, what is in memory, how long the queue is.

import { at, call } from "./api.js";
import { $, bytes, h, seconds } from "./dom.js";
import * as log from "./log.js";

const FRESH = 3000; // ms for which what is shown is believed
const STATES = { ok: "Ready", loading: "Loading a model", paused: "Paused after crashes", error: "The last load failed", no_lanes: "Waiting for a machine of the cluster", shutting_down: "Shutting down" };
const CLUSTER = { joining: "Joining", joined: "Joined", away: "Its head is not answering", failed: "Not joined" };
let timer = null;

/** The view is looked at. */
export async function enter() {
  clearTimeout(timer);
  if ($("view-server").hidden) return void log.leave();
  log.follow();
  try {
    const answer = await fetch(at("/health"), { credentials: "omit" });
    draw(await answer.json(), await holdings());
  } catch {
    $("server-error").textContent = "The server is not responding. Is it running?";
  }
  timer = setTimeout(enter, FRESH);
}

/** What its memory and its folders hold; nothing as long as that cannot be read. */
async function holdings() {
  try {
    const [{ data }, { total }] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/images?limit=1")]);
    const free = data.map(({ meta }) => meta.memory?.free).find(Boolean);
    const size = data.reduce((sum, { meta }) => sum + (meta.size_on_disk ?? 0), 0);
    return { Memory: free && `${bytes(free)} free`, Models: [`${data.length} on this machine`, size ? bytes(size) : ""].filter(Boolean).join(", "), Pictures: total };
  } catch {
    return {};
  }
}

function draw(health, { Memory, ...folders }) {
  $("server-error").textContent = health.error?.message ?? "";
  $("server").replaceChildren(...rows({
    Status: STATES[health.status] ?? health.status,
    "Resumes in": health.pause ? seconds(health.pause) : null,
    "In memory": health.models.join(", ") || "No model",
    Memory,
    Queue: health.queue ? `${health.queue} waiting` : "Empty",
    Backend: [health.backend, health.kernels].filter(Boolean).join(" · "),
    "CPU level": health.build && `${health.build.level} (${health.build.why})`,
    Cluster: health.cluster && (health.cluster.why ?? CLUSTER[health.cluster.status]),
    ...folders,
    Version: health.version,
  }));
  drawCluster(health.cluster);
  $("lanes").replaceChildren(...health.lanes.map((lane) => h("article", { class: "model", "aria-label": lane.name },
    h("div", { class: "bar" }, h("h4", {}, lane.name), h("span", { class: "badge" }, lane.status)),
    h("dl", {}, ...rows({ Model: lane.model ?? "None", Backend: [lane.backend, lane.kernels].filter(Boolean).join(" · "), Job: lane.job, "Resumes in": lane.pause ? seconds(lane.pause) : null })))));
}

/** The machines of a cluster, and the lanes that were lost, the last one first. */
function drawCluster(cluster) {
  $("cluster").hidden = !cluster;
  if (!cluster) return;
  $("nodes").replaceChildren(...cluster.nodes.map((node) => h("article", { class: "model", "aria-label": node.name },
    h("div", { class: "bar" }, h("h4", {}, node.name), h("span", { class: "badge" }, node.status)),
    h("dl", {}, ...rows({ Devices: node.devices.join(", "), CPU: node.cpu, "In memory": node.models.join(", "), Version: node.version, Refused: node.why })))));
  $("lost").replaceChildren(...[...cluster.lost].reverse().map((lost) =>
    h("li", {}, `${new Date(lost.at * 1000).toLocaleString()}: ${lost.lane} was lost (${lost.why})`)));
}

const rows = (values) => Object.entries(values).filter(([, value]) => value != null && value !== "")
  .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]);
