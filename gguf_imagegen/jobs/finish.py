"""How the pictures of a plan are finished, and what is written in them."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_imagegen import __version__
from gguf_imagegen.pictures import infotext, provenance
from gguf_imagegen.pictures.finish import Finish, Upscaler
from gguf_imagegen.pictures.provenance import SourceType
from gguf_imagegen.planning.plan import Plan


def finish_of(plan: Plan, *, marked: bool) -> Finish:
    """How its pictures become files; `marked`: they say that a model made them."""
    return Finish(
        drawn=plan.drawn,
        size=(plan.width, plan.height),
        delivered=plan.delivered,
        format=plan.output_format,
        compression=plan.output_compression,
        original=plan.original,
        mask=plan.mask,
        inset=plan.inset,
        xmp=provenance.packet(source_type(plan)) if marked else b"",
        texts=tuple(describe(plan, index) for index in range(plan.n)),
        enlarger=Upscaler(plan.enlarger) if plan.enlarger else None,
        upscaler=Upscaler(plan.upscale.path, plan.upscale.tile) if plan.upscale else None,
    )


def source_type(plan: Plan) -> SourceType:
    """What is drawn over or after another picture, or enlarges one, is a composite."""
    spec = plan.generate
    made_anew = spec is not None and not (spec.init_image or spec.ref_images)
    return "trainedAlgorithmicMedia" if made_anew else "compositeWithTrainedAlgorithmicMedia"


def describe(plan: Plan, index: int) -> str:
    """The `parameters` text of picture `index` that AUTOMATIC1111 tools read."""
    return infotext.text_of(settings_of(plan, index))


def settings_of(plan: Plan, index: int) -> dict[str, str]:
    """All that makes picture `index` again, by A1111's names; no paths."""
    if plan.generate is None:
        return {key: str(value) for key, value in _enlarged(plan).items() if value is not None}
    spec = plan.generate
    first_pass = (spec.width, spec.height) if spec.hires else plan.drawn
    return infotext.settings_of(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        steps=spec.steps,
        sampler=spec.sampler,
        schedule=spec.schedule,
        cfg_scale=spec.cfg_scale,
        seed=spec.seed_of(index),
        width=first_pass[0],
        height=first_pass[1],
        model=plan.entry.name,
        version=f"gguf_imagegen {__version__}",
        extra={
            **_varied(plan, index),
            **_sampled(plan),
            **_started(plan),
            **_second_pass(plan),
            **_enlarged(plan),
        },
    )


def _varied(plan: Plan, index: int) -> dict[str, object]:
    variation = plan.variation(index)
    if variation is None:
        return {}
    return {"Variation seed": variation.seed, "Variation seed strength": f"{variation.strength:g}"}


def _sampled(plan: Plan) -> dict[str, object]:
    """What else steered the sampling, as far as the model has it and it is not the model's own."""
    spec, entry = plan.spec, plan.entry
    own, tiled = entry.defaults, spec.vae_tiling
    return {
        "Distilled CFG Scale": spec.guidance if entry.traits.distilled_guidance else None,
        "Image CFG scale": None if spec.image_cfg_scale == spec.cfg_scale else spec.image_cfg_scale,
        "Clip skip": None if spec.clip_skip == own.clip_skip else spec.clip_skip,
        "Eta": spec.eta,
        "Shift": None if spec.flow_shift == own.flow_shift else spec.flow_shift,
        "Step cache": None if spec.step_cache == own.step_cache == "none" else spec.step_cache,
        "Step cache threshold": spec.step_cache_threshold,
        "Step cache options": _words(spec.step_cache_options),
        "Sigmas": ", ".join(f"{sigma:g}" for sigma in spec.custom_sigmas) or None,
        "Shifted timestep": spec.shifted_timestep or None,
        "Prediction": entry.engine.prediction,
        "Reference positions": "increasing" if spec.increase_ref_index else None,
        "Tiling": True if entry.seamless == "xy" else entry.seamless,
        "VAE tiles": "{}x{}, overlap {:g}".format(*spec.vae_tile, spec.vae_tile_overlap) if tiled else None,
        "Decoder": entry.decoder if len(entry.decoders) > 1 else None,
        "LoRA": ", ".join(f"{lora.name or lora.path.stem}: {lora.scale:g}" for lora in spec.loras) or None,
    }


def _words(options: Mapping[str, object]) -> str | None:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or None


def _started(plan: Plan) -> dict[str, object]:
    """What an edit started from; the pictures themselves are not in the text."""
    spec = plan.spec
    if not (spec.init_image or spec.ref_images):
        return {}
    return {
        "Denoising strength": None if spec.ref_images else f"{spec.strength:g}",
        "Input images": len(spec.ref_images) or 1,
        "Input mask": "yes" if spec.mask else None,
        "Inpaint area": "Only masked" if plan.whole else None,
    }


def _second_pass(plan: Plan) -> dict[str, object]:
    """AUTOMATIC1111's words; it has no second pass after an edit, whose strength keeps its name here."""
    spec, hires = plan.spec, plan.spec.hires
    if hires is None:
        return {}
    strength = "Hires denoising strength" if spec.init_image else "Denoising strength"
    return {
        strength: f"{hires.denoising_strength:g}",
        "Hires resize": f"{hires.width}x{hires.height}",
        "Hires steps": hires.steps,
        "Hires upscaler": hires.model.stem if hires.model else hires.upscaler,
    }


def _enlarged(plan: Plan) -> dict[str, object]:
    """AUTOMATIC1111's words for what is done to a picture when it is made."""
    if plan.upscale is not None:
        return {
            "Postprocess upscale by": f"{plan.upscale.width / (plan.whole or plan.drawn)[0]:.4g}",
            "Postprocess upscaler": plan.upscale.path.stem,
        }
    if plan.whole or plan.drawn == (plan.width, plan.height):
        return {}
    return {
        "Postprocess upscale to": f"{plan.width}x{plan.height}",
        "Postprocess upscaler": plan.enlarger.stem if plan.enlarger else "Lanczos",
    }
