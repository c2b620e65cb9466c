// What the server is doing: one stream of events, kept as jobs, through lost connections and reloads.

import { call, stream } from "./api.js";

const jobs = new Map(); // by id, in the order of their creation
const listeners = new Set();
const RETRY = [500, 1000, 2000, 4000];
const SILENCE = 20000; // ms; the server sends a heartbeat at least every 10 s

export const all = () => [...jobs.values()].sort((one, other) => other.order - one.order);
export const active = () => all().filter((job) => !job.over);
/** `listener(job, event)` after each change; `listener(null, {type: "online" | "offline"})` of the connection. */
export const listen = (listener) => listeners.add(listener);
const tell = (job, event) => listeners.forEach((listener) => listener(job, event));

let orders = 0;

/** A job object of the server, new or newer. */
export function take(object) {
  const known = jobs.get(object.id);
  const job = known || { id: object.id, order: object.created * 1000 + (orders++ % 1000), seen: -1, pictures: [] };
  jobs.set(object.id, job);
  job.model = object.model;
  job.operation = object.operation;
  job.n = object.n;
  job.parameters = object.parameters;
  job.warnings = object.warnings || [];
  job.status = object.status;
  job.progress = object.progress;
  job.position = object.position;
  job.eta = object.eta;
  job.steps = object.steps;
  job.error = object.error;
  job.over = ["succeeded", "failed", "cancelled"].includes(object.status);
  for (let index = 0; index < job.n; index += 1) {
    job.pictures[index] ??= { phase: "", step: 0, steps: object.steps, preview: "", name: "" };
  }
  for (const item of object.data) {
    job.pictures[item.index].name = decodeURIComponent(item.url.split("/").pop());
    job.pictures[item.index].seed = item.seed;
  }
  tell(job, { type: "job" });
  return job;
}

function reduce(frame) {
  if (frame.type === "job") return void take(frame);
  const job = jobs.get(frame.job);
  if (!job || frame.index <= job.seen) return;
  job.seen = frame.index;
  if (job.over) return;
  Object.assign(job, { status: frame.status, progress: frame.progress, eta: frame.eta });
  const picture = job.pictures[frame.image] || {};
  switch (frame.type) {
    case "queued": job.position = frame.position; break;
    case "started": job.status = "running"; job.position = null; break;
    case "loading": job.loading = frame.total ? frame.done / frame.total : 0; break;
    case "loaded": job.loading = null; break;
    case "phase": Object.assign(picture, { phase: frame.phase, step: 0 }); break;
    case "progress": Object.assign(picture, { phase: frame.phase, step: frame.step, steps: frame.steps }); break;
    case "preview": picture.preview = frame.b64_json; break;
    case "image": Object.assign(picture, { name: frame.name, seed: frame.seed, preview: "" }); break;
    case "notice": job.warnings.push(frame.message); break;
    case "ended":
      job.over = true;
      job.error = frame.error;
      job.pictures.forEach((each) => { each.preview = each.name ? "" : each.preview; });
      break;
  }
  tell(job, frame);
}

/** What ended while nobody listened is told by the job's own page. */
async function catchUp(known) {
  for (const job of known.filter((each) => !each.over)) {
    try {
      take(await call("GET", `/v1/jobs/${job.id}`));
    } catch (error) {
      if (error.status !== 404) throw error;
      Object.assign(job, { over: true, status: "failed", error: { message: "The server has forgotten this job." } });
      tell(job, { type: "ended" });
    }
  }
}

/** Follow the server for ever. */
export async function follow() {
  for (let failures = 0; ; failures += 1) {
    const known = active();
    const leave = new AbortController();
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => leave.abort(), SILENCE);
    };
    try {
      alive();
      for await (const frame of stream("GET", "/v1/events", { signal: leave.signal })) {
        alive();
        if (frame) reduce(frame);
        else if (failures >= 0) {
          failures = -1;
          tell(null, { type: "online" });
          catchUp(known).catch(() => leave.abort());
        }
      }
    } catch { /* told below */ }
    clearTimeout(watchdog);
    if (failures < 0) failures = 0;
    tell(null, { type: "offline" });
    await new Promise((resolve) => setTimeout(resolve, RETRY[Math.min(failures, RETRY.length - 1)]));
  }
}

/** The latest jobs of the server, for a page that was just opened. */
export async function recent(count) {
  const { data } = await call("GET", "/v1/jobs");
  data.slice(0, count).reverse().forEach(take);
}

export const cancel = (id) => call("DELETE", `/v1/jobs/${id}`);
