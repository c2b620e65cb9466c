// A job once more, with its settings and a new seed.

import { call } from "./api.js";
import { previewsOf } from "./create.js";
import { toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { ofJob, requestOf } from "./settings.js";
import * as sources from "./sources.js";

/** Settings of another picture: of a variation the seed stays, and the noise of another one is mixed in. */
const anew = (parameters) => ({ ...parameters, [parameters["Variation seed"] ? "Variation seed" : "Seed"]: undefined });

export async function redo(job) {
  const { image, mask: _, ...body } = requestOf(anew(ofJob(job)));
  const source = sources.ofJob(job.id);
  if (image && !source) return void toast("This browser does not have the picture that it started from. Load its settings, and choose the picture.", "error");
  const pictures = image ? { image: source.images, mask: source.mask ?? undefined } : {};
  const wanted = { ...body, ...pictures, n: job.n, stream_options: { preview: previewsOf(job.model) }, on_disconnect: "continue" };
  try {
    const made = jobs.take(await call("POST", image ? "/v1/images/edits" : "/v1/images/generations", wanted, { Prefer: "respond-async" }));
    if (image) sources.add(made, pictures);
  } catch (error) {
    toast(error.message, "error");
  }
}
