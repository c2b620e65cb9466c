// Settings under the names that others give them: AUTOMATIC1111's in pictures, the API's in requests.

import { at } from "./api.js";

const bare = (name) => name.toLowerCase().replace(/[\s_]+/g, "");
const SCHEDULE_IN_SAMPLER = /\s+(karras|exponential|sgm uniform)$/i;

/** The one of `names` that is meant, however it is written: "Euler a" is euler_a, "DDIM" ddim_trailing. */
export function nearest(name, names) {
  if (!name) return undefined;
  const wanted = bare(name);
  return names.find((each) => bare(each) === wanted) ?? (wanted === "automatic" ? "default" : undefined)
    ?? names.find((each) => bare(each).startsWith(wanted) && wanted.length > 3);
}

/** Choose the option of a list that is meant, if there is one; whether there is. */
export function choose(select, value) {
  const names = [...select.options].map((option) => option.value);
  const found = names.includes(value) ? value : nearest(value, names);
  if (found !== undefined) select.value = found;
  return found !== undefined;
}

/** AUTOMATIC1111's parameters as values of the form; what they do not say is undefined. */
export function named(parameters) {
  const [width, height] = (parameters.Size || "").split("x");
  const sampler = parameters.Sampler || "";
  const [, inSampler] = sampler.match(SCHEDULE_IN_SAMPLER) || [];
  const [factor, upscaler] = [parameters["Postprocess upscale by"], parameters["Postprocess upscaler"]];
  return {
    prompt: parameters.Prompt, negative: parameters["Negative prompt"], steps: parameters.Steps,
    sampler: sampler.replace(SCHEDULE_IN_SAMPLER, ""), schedule: parameters["Schedule type"] || inSampler,
    cfg: parameters["CFG scale"], guidance: parameters["Distilled CFG Scale"], seed: parameters.Seed, width, height,
    model: parameters.Model, strength: startOf(parameters) ? parameters["Denoising strength"] : undefined,
    step_cache: parameters["Step cache"], decoder: parameters.Decoder, loras: lorasOf(parameters),
    variation_seed: parameters["Variation seed"], variation_strength: parameters["Variation seed strength"],
    clip_skip: parameters["Clip skip"], eta: parameters.Eta, flow_shift: parameters.Shift, ...secondPass(parameters),
    upscale: factor && upscaler ? `${factor} ${upscaler}` : undefined,
  };
}

/** The second pass as fields of the form. */
function secondPass(parameters) {
  const { width, height, steps, upscaler, denoising_strength: strength } = hiresOf(parameters) ?? {};
  return { hires_width: width, hires_height: height, hires_steps: steps, hires_upscaler: upscaler, hires_strength: strength };
}

/** "ink: 0.5, fog: 1" as a list. */
const lorasOf = ({ LoRA: text }) => (text || "").split(", ").filter(Boolean).map((each) => {
  const cut = each.lastIndexOf(": ");
  return { name: each.slice(0, cut), scale: Number(each.slice(cut + 2)) };
});

/** What an edit started from, {images, mask}; null if the picture was made from words alone. */
export function startOf(parameters) {
  const images = Number(parameters["Input images"]);
  const told = parameters["Denoising strength"] !== undefined && !parameters["Hires resize"] && !parameters["Hires upscale"];
  return images || told ? { images: images || 1, mask: Boolean(parameters["Input mask"] ?? parameters["Mask blur"]) } : null;
}

/** A job's parameters as its pictures will carry them. */
export const ofJob = (job, seed = job.parameters.seed) => ({ ...job.settings, Seed: seed });

const number = (value) => (value === undefined || value === "" ? undefined : Number(value));

/** The request that makes such a picture; the pictures of an edit are named for the reader to replace. */
export function requestOf(parameters) {
  const values = named(parameters);
  return {
    model: values.model, prompt: values.prompt, negative_prompt: values.negative || undefined, size: parameters.Size,
    steps: number(values.steps), sampler: values.sampler || undefined, schedule: values.schedule,
    cfg_scale: number(values.cfg), guidance: number(values.guidance), image_cfg_scale: number(parameters["Image CFG scale"]),
    clip_skip: number(parameters["Clip skip"]), eta: number(parameters.Eta), flow_shift: number(parameters.Shift),
    seed: number(values.seed), variation_seed: number(values.variation_seed), variation_strength: number(values.variation_strength),
    strength: number(values.strength), step_cache: values.step_cache,
    step_cache_threshold: number(parameters["Step cache threshold"]), decoder: values.decoder,
    lora: values.loras.length ? values.loras : undefined, hires: hiresOf(parameters),
    upscale: number(parameters["Postprocess upscale by"]), upscaler: parameters["Postprocess upscaler"],
    ...placeholders(startOf(parameters)),
  };
}

function hiresOf(parameters) {
  if (!parameters["Hires resize"]) return undefined;
  const [width, height] = parameters["Hires resize"].split("x").map(Number);
  return {
    width, height, steps: number(parameters["Hires steps"]), upscaler: parameters["Hires upscaler"],
    denoising_strength: number(parameters["Hires denoising strength"] ?? parameters["Denoising strength"]),
  };
}

function placeholders(start) {
  if (!start) return {};
  const names = Array.from({ length: start.images }, (_, index) => `PICTURE${start.images > 1 ? `-${index + 1}` : ""}.png`);
  return { image: names, mask: start.mask ? "MASK.png" : undefined };
}

/** What the reader has to replace in a request; "" for nothing. */
export const toReplace = ({ image = [], mask }) => [...image, mask].filter(Boolean).join(", ");

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** The same as a command line; texts as they are, whatever they begin with or contain. */
export function curlOf({ image, mask, ...request }, keyed) {
  const key = keyed ? " -H \"Authorization: Bearer $KEY\"" : "";
  if (!image) {
    const body = JSON.stringify({ ...request, stream: true });
    return `curl -N ${location.origin}${at("/v1/images/generations")}${key} -H 'Content-Type: application/json' -d ${quoted(body)}`;
  }
  const files = [...image.map((name) => `-F 'image[]=@${name}'`), ...(mask ? [`-F 'mask=@${mask}'`] : [])];
  const texts = Object.entries({ ...request, stream: true }).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `--form-string ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
  return `curl -N ${location.origin}${at("/v1/images/edits")}${key} ${[...files, ...texts].join(" ")}`;
}
