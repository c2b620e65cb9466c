// Downloads of models: what goes on, how far it is, and why one has failed.

import { ApiError, call, stream } from "./api.js";
import { announce, bytes, seconds, toast } from "./dom.js";

const LOST = "The connection was lost during the download.";
const STOPPED = "The server stopped before the download finished. Download resumes it.";
const going = new Map(); // id -> {name, done, total, words}
const broken = new Map(); // id -> name of the download whose connection broke
const faults = new Map(); // id -> {message, silence}: what went wrong with a model, and whether that is over when the server answers
let moved = () => {};
let ended = () => {};

/** `onMove(id)` at each step of a download, `onEnd(id)` when one begins or ends. */
export function start(onMove, onEnd) {
  [moved, ended] = [onMove, onEnd];
}

export const of = (id) => going.get(id);
export const fault = (id) => faults.get(id)?.message;
export const forgive = (id) => faults.delete(id);
export const blame = (id, { message, status }) => faults.set(id, { message, silence: status === 0 });
export const cancel = (id) => call("DELETE", `/v1/models/pull/${encodeURIComponent(going.get(id).name)}`);

/** New from the server: downloads that others have begun are followed, those that were lost are judged. */
export function offer(list, follows) {
  for (const [id, { silence }] of faults) if (silence) faults.delete(id);
  for (const { id, meta } of list) {
    if (broken.has(id)) judge(id, meta);
    if (follows && meta.pulling.length && !going.has(id)) pull(id, meta.pulling.at(-1));
  }
}

/** Whether a download whose connection broke has ended with the server; one that goes on is followed again. */
function judge(id, meta) {
  const name = broken.get(id);
  broken.delete(id);
  const came = meta.quants.find((quant) => quant.name === name)?.on_disk ?? meta.quants.some((quant) => quant.on_disk);
  if (!came && !meta.pulling.length) faults.set(id, { message: meta.pull_error?.message ?? STOPPED });
}

/** Download a model, or follow its download. */
export async function pull(id, name) {
  faults.delete(id);
  going.set(id, { name, done: 0, total: 0, words: "Contacting the hub…" });
  broken.delete(id);
  ended(id);
  let last = null;
  try {
    for await (const frame of stream("POST", "/v1/models/pull", { body: { model: name, stream: true } })) {
      if (!frame) continue;
      if (frame.error) throw Object.assign(new Error(frame.error.message), frame.error);
      last = frame;
      going.set(id, { ...going.get(id), ...progress(frame) });
      moved(id);
    }
    if (last?.status !== "succeeded") throw new ApiError(0, LOST);
    announce(`${id} is downloaded.`);
    toast(`${id} is downloaded.`);
  } catch (error) {
    const silence = error.status === 0 || error instanceof TypeError;
    if (error.code === "cancelled") toast(`The download of ${id} was cancelled. The next one resumes it.`);
    else faults.set(id, { message: silence ? LOST : error.message, silence });
    if (silence && last) broken.set(id, going.get(id).name); // it may go on without us
  }
  going.delete(id);
  ended(id);
}

const WORDS = { waiting: "Waiting for another download", verifying: "Checking", rewriting: "Rewriting" };

function progress({ model, status, done, total, speed, eta, overall }) {
  const whole = overall ?? { done, total };
  const parts = [
    WORDS[status], whole.total ? `${bytes(whole.done)} of ${bytes(whole.total)}` : "Contacting the hub…",
    speed ? `${bytes(speed)}/s` : "", eta ? `${seconds(eta)} left` : "",
  ];
  return { name: model, done: whole.done ?? 0, total: whole.total ?? 0, words: parts.filter(Boolean).join(" · ") };
}
