"""What a picture tells of how it was made: enough to make it again, and nothing that is the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_imagegen.jobs.finish import describe, settings_of
from gguf_imagegen.pictures import infotext
from tests.planning.test_plan import entry, picture, planned

ALWAYS = {
    "Prompt", "Negative prompt", "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model",
    "Version",
}  # fmt: skip


def told(*args: Any, **fields: Any) -> dict[str, str]:
    return infotext.parse_parameters(describe(planned(*args, **fields), 0))


def test_nothing_is_told_that_is_the_models_own() -> None:
    """A plain picture has AUTOMATIC1111's usual pairs; a model's own step cache is told all the same."""
    assert told().keys() == ALWAYS
    cached = entry(defaults={"step_cache": "spectrum"})
    assert told(cached)["Step cache"] == "spectrum"
    assert told(cached, step_cache="none")["Step cache"] == "none"


def test_guidance_is_told_where_the_family_has_it() -> None:
    """Distilled guidance, under Forge's name."""
    assert told(entry("flux"), guidance=2.5)["Distilled CFG Scale"] == "2.5"
    assert "Distilled CFG Scale" not in told(entry("sd1"), guidance=2.5)


def test_everything_else_that_was_asked_for_is_told() -> None:
    """Each under a name of AUTOMATIC1111 or Forge where they have one."""
    files = {"vae": Path("vae.gguf"), "taesd": Path("tae.gguf")}
    fields = {"clip_skip": 2, "eta": 0.5, "flow_shift": 2, "image_cfg_scale": 1.5, "step_cache": "spectrum"}
    found = told(entry(files=files, quant="q8"), decoder="tiny", step_cache_threshold=0.2, **fields)
    extra = {
        "Clip skip": "2", "Eta": "0.5", "Shift": "2", "Image CFG scale": "1.5", "Step cache": "spectrum",
        "Step cache threshold": "0.2", "Decoder": "tiny", "Model": "some-model:q8",
    }  # fmt: skip
    assert found.items() >= extra.items()
    assert found.keys() == ALWAYS | extra.keys()


def test_a_variation_is_told_by_its_two_seeds() -> None:
    """That of the noise mixed in counts up; AUTOMATIC1111 reads both."""
    plan = planned(seed=5, variation_seed=9, variation_strength=0.25, n=2)
    told = infotext.parse_parameters(describe(plan, 1))
    assert [told[name] for name in ("Seed", "Variation seed", "Variation seed strength")] == [
        "5",
        "10",
        "0.25",
    ]


def test_an_edit_tells_what_it_started_from() -> None:
    """Its strength where that counts, how many pictures, and whether there was a mask."""
    image, mask = picture(128, 128), picture(128, 128, "L", 255)
    plain = told(entry("sd1"), "edit", image=image, strength=0.3)
    assert (plain["Denoising strength"], plain["Input images"], "Input mask" in plain) == ("0.3", "1", False)
    assert told(entry("sd1"), "edit", image=image, mask=mask)["Input mask"] == "yes"
    two = told(entry("flux2"), "edit", image=[image, image])
    assert (two["Input images"], "Denoising strength" in two) == ("2", False)


def test_a_second_pass_is_told_beside_the_size_of_the_first() -> None:
    """As AUTOMATIC1111 has it; an edit keeps the strength of its own."""
    hires = {"scale": 2, "steps": 5, "denoising_strength": 0.6}
    found = told(entry("sd1"), size="128x128", hires=hires)
    assert (found["Size"], found["Hires resize"], found["Hires steps"]) == ("128x128", "256x256", "5")
    assert found["Denoising strength"] == "0.6"
    edited = told(entry("sd1"), "edit", image=picture(128, 128), size="128x128", strength=0.3, hires=hires)
    assert (edited["Denoising strength"], edited["Hires denoising strength"]) == ("0.3", "0.6")


def test_the_text_is_the_settings_printed() -> None:
    """A1111's text and our JSON are one dict, also where the prompt looks like a line of the text."""
    plan = planned(seed=5, prompt="a cat\nNegative prompt: is no such line, Steps: 3, Seed: 4, Size: 1x1")
    told = settings_of(plan, 2)
    assert told["Prompt"] == plan.spec.prompt
    assert told["Seed"] == "7"
    assert describe(plan, 2) == infotext.text_of(told)
