// What the server is doing: one stream of events, kept as jobs, through lost connections and reloads.

import { call, stream } from "./api.js";

const RETRY = [500, 1000, 2000, 4000]; // ms before the first, second … attempt to connect again
const SILENCE = 20000; // ms; the server sends a heartbeat at least every 10 s
const RECENT = 12; // ended jobs to hear of when the page is opened
const KEPT = 24; // ended jobs to remember
const OVER = ["succeeded", "failed", "cancelled"];

const jobs = new Map(); // by id
const listeners = new Set();
let orders = 0;

/** The newest first. */
export const all = () => [...jobs.values()].sort((one, other) => other.order - one.order);
export const active = () => all().filter((job) => !job.over);
export const cancel = (id) => call("DELETE", `/v1/jobs/${id}`);

/** The waiting jobs that this one may change places with, the next one first. */
export const line = ({ caller, priority }) => active().filter((job) => job.status === "queued" && job.caller === caller && job.priority === priority)
  .sort((one, other) => one.position - other.position);

/** Let a waiting job go before another; the stream tells the new places. */
export const letBefore = async (id, other) => take(await call("POST", `/v1/jobs/${id}`, { before: other }));

/**
 * `listener(job, event)` after each change: an event of the stream, {type: "job"} when the job object was read,
 * {type: "gone"} when one of its pictures was deleted, {type: "forgotten"} when it is not kept any more; and `listener(null, {type: "online" | "offline"})`.
 */
export const listen = (listener) => listeners.add(listener);

function tell(job, event) {
  for (const listener of listeners) {
    try {
      listener(job, event);
    } catch (error) {
      reportError(error); // a fault of one must not look like a lost connection
    }
  }
}

/** A job object of the server. The stream tells a job's state better than an answer that may be late. */
export function take(object) {
  let job = jobs.get(object.id);
  const known = Boolean(job);
  const streamed = job && job.seen >= 0;
  if (!job) {
    const order = object.created * 1000 + (orders++ % 1000);
    job = { id: object.id, order, seen: -1, pictures: [], progress: 0, over: false };
    jobs.set(job.id, job);
  }
  const over = OVER.includes(object.status);
  const ends = over && !job.over && known;
  if (!job.over && (over || !streamed)) {
    const { status, progress, position, eta, error } = object;
    Object.assign(job, { status, progress, position, eta, error, over, loading: null });
  }
  const { model, operation, n, parameters, settings, set, caller, priority } = object;
  Object.assign(job, { model, operation, n, parameters, settings, set, caller, priority, warnings: object.warnings });
  for (let index = 0; index < n; index += 1) {
    job.pictures[index] ??= { phase: "", step: 0, steps: object.steps, preview: "", name: "" };
  }
  for (const item of object.data) {
    Object.assign(job.pictures[item.index], { name: decodeURIComponent(item.url.split("/").pop()), seed: item.seed, preview: "" });
  }
  tell(job, { type: ends ? "ended" : "job" });
  forgetOld();
  return job;
}

/** The server has this picture no more. */
export function pictureGone(name) {
  for (const job of all()) {
    const picture = job.pictures.find((each) => each.name === name);
    if (!picture || picture.gone) continue;
    picture.gone = true;
    tell(job, { type: "gone" });
  }
}

function forgetOld() {
  if (jobs.size <= KEPT) return;
  for (const job of all().filter((each) => each.over).slice(KEPT)) {
    jobs.delete(job.id);
    tell(job, { type: "forgotten" });
  }
}

function reduce(frame) {
  if (frame.type === "job") return void take(frame);
  if (frame.type === "queue") return void moveUp(frame);
  const job = jobs.get(frame.job);
  if (!job || job.over || frame.index <= job.seen) return;
  job.seen = frame.index;
  const { status, progress, eta } = frame;
  Object.assign(job, { status, progress, eta });
  const picture = job.pictures[frame.image] || {};
  switch (frame.type) {
    case "queued": job.position = frame.position; break;
    case "started": job.position = null; break;
    case "loading": job.loading = frame.total ? frame.done / frame.total : 0; break;
    case "loaded": job.loading = null; break;
    case "phase": Object.assign(picture, { phase: frame.phase, step: 0 }); break;
    case "progress": Object.assign(picture, { phase: frame.phase, step: frame.step, steps: frame.steps }); break;
    case "preview": picture.preview = frame.b64_json; break;
    case "image": Object.assign(picture, { name: frame.name, seed: frame.seed, preview: "" }); break;
    case "notice": if (!job.warnings.includes(frame.message)) job.warnings.push(frame.message); break;
    case "ended": Object.assign(job, { over: true, error: frame.error, loading: null }); break;
  }
  tell(job, frame);
  if (job.over) forgetOld();
}

/** The order of the queue, after somebody has left it. */
function moveUp(frame) {
  frame.waiting.forEach(({ job: id, position, eta }) => {
    const job = jobs.get(id);
    if (job?.status !== "queued") return;
    Object.assign(job, { position, eta });
    tell(job, frame);
  });
}

/** What ended while nobody listened is told by the job's own page. */
async function catchUp(known) {
  for (const job of known.filter((each) => !each.over)) {
    try {
      take(await call("GET", `/v1/jobs/${job.id}`));
    } catch (error) {
      if (error.status !== 404) throw error;
      const words = "The server restarted before this finished. Generate it again.";
      Object.assign(job, { over: true, status: "failed", loading: null, error: { message: words } });
      tell(job, { type: "ended" });
    }
  }
}

/** One connection, to its end; whether there was one at all. */
async function connect() {
  const known = active();
  const leave = new AbortController();
  let watchdog;
  let online = false;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => leave.abort(), SILENCE);
  };
  try {
    alive();
    for await (const frame of stream("GET", `/v1/events?recent=${RECENT}`, { signal: leave.signal })) {
      alive();
      if (frame) reduce(frame);
      if (online) continue;
      online = true;
      tell(null, { type: "online" });
      catchUp(known).catch(() => leave.abort());
    }
  } catch { /* it is lost, however: the next attempt tells whether the server is there */ }
  clearTimeout(watchdog);
  return online;
}

/** Follow the server for ever. */
export async function follow() {
  for (let failures = 0; ;) {
    failures = (await connect()) ? 0 : failures + 1;
    tell(null, { type: "offline" });
    await pause(RETRY[Math.min(failures, RETRY.length - 1)]);
  }
}

/** So long, or until the network or the reader is back. */
function pause(time) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const go = () => { over.abort(); resolve(); };
    setTimeout(go, time);
    window.addEventListener("online", go, over);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) go(); }, over);
  });
}
