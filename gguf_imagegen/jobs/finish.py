"""From an engine's pixels to the bytes of an answer: kept pixels restored, cropped, described, encoded."""

from __future__ import annotations

from gguf_imagegen import __version__, images, metadata
from gguf_imagegen.engine.protocol import RawImage
from gguf_imagegen.events import ImageMade, Preview
from gguf_imagegen.jobs.plan import Plan


def finish_pixels(plan: Plan, made: ImageMade) -> RawImage:
    """What the engine made, exactly `plan.width` x `plan.height`. CPU-bound: call it in a thread."""
    rgb = images.centre_crop(made.rgb, made.width, made.height, plan.width, plan.height)
    if plan.original is not None and plan.mask is not None:
        rgb = images.composite(rgb, plan.width, plan.height, plan.original, plan.mask)
    return RawImage(plan.width, plan.height, 3, rgb)


def encode_image(plan: Plan, picture: RawImage, seed: int) -> bytes:
    """The file of the size to deliver. CPU-bound: call it in a thread."""
    picture = images.resized(picture, *plan.delivered)
    return images.encode(
        picture.data,
        picture.width,
        picture.height,
        format=plan.output_format,
        compression=plan.output_compression,
        parameters=describe(plan, seed),
    )


def finish_preview(plan: Plan, preview: Preview) -> bytes:
    """A preview in the format that the client asked for."""
    return images.encode_preview(preview.rgb, preview.width, preview.height, format=plan.output_format)


def describe(plan: Plan, seed: int) -> str:
    """The `parameters` text that AUTOMATIC1111 tools read; no paths."""
    spec = plan.spec
    extra = {"Denoising strength": f"{spec.strength:g}"} if spec.init_image else {}
    if spec.hires is not None:
        extra = {
            "Denoising strength": f"{spec.hires.denoising_strength:g}",
            "Hires resize": f"{spec.hires.width}x{spec.hires.height}",
            "Hires steps": f"{spec.hires.steps}",
            "Hires upscaler": spec.hires.model.stem if spec.hires.model else spec.hires.upscaler,
        }
    if spec.step_cache != "none":
        extra["Step cache"] = spec.step_cache
    if spec.loras:
        extra["LoRA"] = ", ".join(f"{lora.path.stem}: {lora.scale:g}" for lora in spec.loras)
    if plan.upscale is not None:
        extra["Postprocess upscale by"] = f"{plan.upscale.width / plan.width:.4g}"
        extra["Postprocess upscaler"] = plan.upscale.path.stem
    if plan.pictures:
        return ", ".join(f"{key}: {value}" for key, value in extra.items())
    return metadata.parameters_text(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        steps=spec.steps,
        sampler=spec.sampler,
        schedule=spec.schedule,
        cfg_scale=spec.cfg_scale,
        seed=seed,
        width=plan.width,
        height=plan.height,
        model=plan.entry.id,
        version=f"gguf_imagegen {__version__}",
        extra=extra,
    )
