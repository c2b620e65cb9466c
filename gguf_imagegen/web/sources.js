// The pictures that jobs of this browser started from: to compare with what came of them, and to start again.

import * as jobs from "./jobs.js";
import { pictures } from "./store.js";

const MOST = 12;
let sources = []; // {job, images, mask, names}, the newest last

export function start() {
  pictures.get("sources", []).then((before) => { sources = [...before.filter((each) => each.images), ...sources].slice(-MOST); });
  jobs.listen((job, event) => { if (job?.over && event.type === "ended") rememberNames(job); });
}

/** What a job started from, {images, mask}, if this browser sent it. */
export const ofJob = (id) => sources.find((each) => each.job === id);
/** The same for a finished picture. */
export const ofPicture = (name) => sources.find((each) => each.names?.includes(name));

export function add(job, { image, mask }) {
  sources = [...sources, { job: job.id, images: image, mask: mask ?? null }].slice(-MOST);
  pictures.set("sources", sources);
  if (job.over) rememberNames(job);
}

/** Finished pictures outlive their job. */
function rememberNames(job) {
  const source = ofJob(job.id);
  if (!source) return;
  source.names = job.pictures.map((each) => each.name);
  pictures.set("sources", sources);
}
