// Settings under the names that others give them: AUTOMATIC1111's in pictures, the API's in requests.

const bare = (name) => name.toLowerCase().replace(/[\s_]+/g, "");
const SCHEDULE_IN_SAMPLER = /\s+(karras|exponential|sgm uniform)$/i;

/** The one of `names` that is meant, however it is written: "Euler a" is euler_a, "DDIM" ddim_trailing. */
export function nearest(name, names) {
  if (!name) return undefined;
  const wanted = bare(name);
  return names.find((each) => bare(each) === wanted) ?? (wanted === "automatic" ? "default" : undefined)
    ?? names.find((each) => bare(each).startsWith(wanted) && wanted.length > 3);
}

/** AUTOMATIC1111's parameters as values of the form. */
export function named(parameters) {
  const [width, height] = (parameters.Size || "").split("x");
  const sampler = parameters.Sampler || "";
  const [, inSampler] = sampler.match(SCHEDULE_IN_SAMPLER) || [];
  return {
    prompt: parameters.Prompt, negative: parameters["Negative prompt"] ?? "", steps: parameters.Steps,
    sampler: sampler.replace(SCHEDULE_IN_SAMPLER, ""), schedule: parameters["Schedule type"] || inSampler,
    cfg: parameters["CFG scale"], guidance: parameters["Distilled CFG Scale"], seed: parameters.Seed, width, height,
    model: parameters.Model, strength: parameters["Denoising strength"],
  };
}

/** A job's parameters under AUTOMATIC1111's names, as far as the job object tells them. */
export const ofJob = (job, seed) => ({
  Prompt: job.parameters.prompt, "Negative prompt": job.parameters.negative_prompt, Steps: job.parameters.steps,
  Sampler: job.parameters.sampler, "Schedule type": job.parameters.schedule, "CFG scale": job.parameters.cfg_scale,
  Seed: seed ?? job.parameters.seed, Size: `${job.parameters.width}x${job.parameters.height}`, Model: job.model,
});

/** The request that makes such a picture. */
export function requestOf(parameters) {
  const values = named(parameters);
  const number = (value) => (value === undefined || value === "" ? undefined : Number(value));
  return {
    model: values.model, prompt: values.prompt, negative_prompt: values.negative || undefined, size: parameters.Size,
    steps: number(values.steps), sampler: values.sampler || undefined, schedule: values.schedule,
    cfg_scale: number(values.cfg), seed: number(values.seed), strength: number(values.strength),
  };
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** The same as a command line; of an edit without the picture, which is named for the reader to replace. */
export function curlOf(request, keyed) {
  const key = keyed ? " -H \"Authorization: Bearer $KEY\"" : "";
  if (request.strength === undefined) {
    const body = JSON.stringify({ ...request, stream: true });
    return `curl -N ${location.origin}/v1/images/generations${key} -H 'Content-Type: application/json' -d ${quoted(body)}`;
  }
  const fields = Object.entries(request).filter(([, value]) => value !== undefined);
  const parts = fields.map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`).join(" ");
  return `curl -N ${location.origin}/v1/images/edits${key} -F 'image[]=@PICTURE.png' ${parts} -F stream=true`;
}
