"""Plans: every default filled in, every guard of the engine in force, every size aligned and delivered."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.entry import Defaults, Entry
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.modelfiles.traits import traits_of
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.planning.plan import Operation, Plan, plan
from gguf_imagegen.planning.prompt import MAX_NESTING, neutralise_emphasis
from gguf_imagegen.planning.request import MAX_SEED, parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import (
    InvalidImage,
    InvalidModelFile,
    InvalidRequest,
    InvalidSize,
    MissingAddon,
    PromptTooLong,
    UnsupportedOperation,
)
from tests.weights import product, write_safetensors


def entry(family: str = "ovis-image", **fields: Any) -> Entry:
    traits = traits_of(family)
    assert traits is not None
    defaults = Defaults.model_validate({**traits.defaults, "size": "256x256", **fields.pop("defaults", {})})
    files = {"model": Path("model.gguf"), **fields.pop("files", {})}
    return Entry(id="some-model", family=family, files=files, defaults=defaults, **fields)


def planned(
    model: Entry | None = None,
    operation: Operation = "generation",
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> Plan:
    request, warnings = parse_request({"prompt": "a fox", **fields})
    return plan(request, model or entry(), Settings(**(settings or {})), operation, warnings)


def picture(width: int, height: int, mode: str = "RGB", color: Any = "red") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, "PNG")
    return out.getvalue()


# -- defaults -----------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_model() -> None:
    """A bare prompt gets the catalog's values everywhere, and nothing else."""
    model = entry(
        defaults={"size": "128x192", "steps": 9, "sampler": "heun", "schedule": "karras", "cfg_scale": 3.5,
                  "guidance": 2.0, "strength": 0.4, "clip_skip": 2, "flow_shift": 1.5}
    )  # fmt: skip
    result = planned(model)
    spec = result.spec
    assert (spec.width, spec.height, spec.steps, spec.sampler, spec.schedule) == (
        128,
        192,
        9,
        "heun",
        "karras",
    )
    assert (spec.cfg_scale, spec.image_cfg_scale, spec.guidance, spec.strength) == (3.5, 3.5, 2.0, 0.4)
    assert (spec.clip_skip, spec.flow_shift, spec.eta, spec.n) == (2, 1.5, None, 1)
    assert (spec.preview, spec.preview_steps, spec.skip_layers, spec.hires) == ("none", (), None, None)
    assert (result.output_format, result.quality, result.warnings) == ("png", "auto", ())
    assert result.keep_alive == Settings().keep_alive


def test_what_is_asked_for_wins() -> None:
    """Each field of the request replaces the model's default, zero included."""
    result = planned(
        steps=3, sampler="lcm", schedule="simple", cfg_scale=1, guidance=0, strength=0, clip_skip=1, seed=0,
        n=2, eta=0, flow_shift=2, vae_tiling=True, keep_alive=0, output_format="webp", quality="high",
        slg_scale=2, slg_skip_layers=[1], step_cache="easycache", step_cache_threshold=0.5,
    )  # fmt: skip
    spec = result.spec
    assert (spec.steps, spec.sampler, spec.schedule, spec.cfg_scale, spec.guidance) == (
        3,
        "lcm",
        "simple",
        1,
        0,
    )
    assert (spec.strength, spec.clip_skip, spec.seed, spec.n, spec.eta, spec.flow_shift) == (0, 1, 0, 2, 0, 2)
    assert spec.vae_tiling
    assert (spec.step_cache, spec.step_cache_threshold) == ("easycache", 0.5)
    assert spec.skip_layers is not None
    assert (spec.skip_layers.layers, spec.skip_layers.scale) == ((1,), 2)
    assert (result.keep_alive, result.output_format, result.quality) == (0, "webp", "high")


def test_a_seed_is_chosen_and_is_safe_in_json() -> None:
    """Without a seed two plans differ, and the last image's seed still fits a double."""
    seeds = {planned(n=10).spec.seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed <= MAX_SEED - 10 for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({}, 20), ({"quality": "low"}, 4), ({"quality": "standard"}, 15), ({"quality": "hd"}, 30),
     ({"quality": "high"}, 30), ({"quality": "auto"}, 20), ({"quality": "max"}, 30),
     ({"quality": "low", "steps": 11}, 11), ({"quality": "hd", "step": 1}, 1)],
)  # fmt: skip
def test_quality_chooses_steps_only_where_none_are_named(fields: dict[str, Any], steps: int) -> None:
    """Presets are the catalog's; one that it lacks is the next lower; named steps always win."""
    model = entry(defaults={"steps": 20}, quality={"low": 4, "medium": 15, "high": 30})
    assert planned(model, **fields).spec.steps == steps


@pytest.mark.parametrize(
    ("family", "fields", "cfg_scale", "guidance"),
    [
        ("sd1", {"guidance_scale": 4}, 4, 3.5),
        ("sd1", {"guidance_scale": 4, "cfg_scale": 2}, 2, 3.5),
        ("flux", {"guidance_scale": 4}, 1, 4),
        ("flux", {"guidance_scale": 4, "distilled_guidance": 2}, 1, 2),
        ("flux", {"guidance_scale": 4, "true_cfg_scale": 2}, 2, 4),
        ("qwen-image", {"guidance_scale": 4}, 4, 3.5),
    ],
)
def test_guidance_scale_is_what_the_family_has(
    family: str, fields: dict[str, Any], cfg_scale: float, guidance: float
) -> None:
    """diffusers' word means distilled guidance on Flux and CFG elsewhere; the exact words win over it."""
    spec = planned(entry(family), **fields).spec
    assert (spec.cfg_scale, spec.guidance) == (cfg_scale, guidance)


@pytest.mark.parametrize(
    "family", ["ovis-image", "sd1", "sd1-pix2pix", "z-image", "qwen-image", "flux", "flux2"]
)
@pytest.mark.parametrize("name", ["cfg_scale", "true_cfg_scale", "txt_cfg", "image_cfg_scale"])
@pytest.mark.parametrize("scale", [0, 0.5])
def test_a_scale_below_1_is_no_guidance(family: str, name: str, scale: float) -> None:
    """At 0 the engine would draw the negative prompt alone, whatever the family."""
    fields: dict[str, Any] = {name: scale}
    result = planned(entry(family, defaults={"cfg_scale": 1}), **fields)
    assert (result.spec.cfg_scale, result.spec.image_cfg_scale) == (1, 1)
    kind = "image_cfg_scale" if name == "image_cfg_scale" else "cfg_scale"
    assert f"{kind}: {scale:g} means no guidance; 1 was used" in result.warnings


def test_a_guidance_scale_of_0() -> None:
    """As vLLM-Omni's page has it for Z-Image: no guidance. Distilled guidance has a 0 of its own."""
    assert planned(entry("z-image"), guidance_scale=0).spec.cfg_scale == 1
    distilled = planned(entry("flux"), guidance_scale=0)
    assert (distilled.spec.cfg_scale, distilled.spec.guidance, distilled.warnings) == (1, 0, ())


def test_a_catalogs_0_is_no_guidance_too() -> None:
    """As model cards say of distilled models, whose `guidance_scale` is 0."""
    assert planned(entry(defaults={"cfg_scale": 0})).spec.cfg_scale == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"cfg_scale": 1}, True), ({"guidance_scale": 0}, True), ({"cfg_scale": 1.5}, False), ({}, False),
     ({"cfg_scale": 1, "image_cfg_scale": 2}, False), ({"cfg_scale": 1, "negative_prompt": " "}, False)],
)  # fmt: skip
def test_a_negative_prompt_without_effect_is_said(fields: dict[str, Any], said: bool) -> None:
    """Without guidance nothing reads it; with any it has an effect, and blanks ask for none."""
    result = planned(entry("sd1"), **{"negative_prompt": "rain", **fields})
    assert any(note.startswith("negative_prompt: has no effect") for note in result.warnings) is said


# -- guards -------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"limits": {"max_side": 512, "max_pixels": 100_000, "max_steps": 50}}


@pytest.mark.parametrize(
    ("kind", "param", "fields"),
    [
        (InvalidRequest, "prompt", {"prompt": "a\0b"}),
        (InvalidRequest, "negative_prompt", {"negative_prompt": "\0"}),
        (PromptTooLong, "prompt", {"prompt": "x" * 8001}),
        (PromptTooLong, "prompt", {"prompt": "\U0001f98a" * 4001}),
        (PromptTooLong, "negative_prompt", {"negative_prompt": "x" * 30_000}),
        (InvalidRequest, "prompt", {"prompt": "(" * (MAX_NESTING + 1)}),
        (InvalidRequest, "negative_prompt", {"negative_prompt": "[x" * (MAX_NESTING + 1)}),
        (InvalidRequest, "n", {"n": 11}),
        (InvalidRequest, "steps", {"steps": 151}),
        (UnsupportedOperation, "decoder", {"decoder": "tiny"}),
        (InvalidSize, "size", {"size": "513x64"}),
        (InvalidSize, "size", {"size": "999999x999999"}),
        (InvalidSize, "size", {"size": "512x63"}),
        (InvalidSize, "size", {"size": "1x9"}),
        (InvalidSize, "size", {"size": "2049x2048"}),
        (InvalidSize, "size", {"width": 10**9}),
        (InvalidRequest, "mask", {"mask": picture(64, 64)}),
        (UnsupportedOperation, "image", {"image": [picture(64, 64)] * 2}),
        (InvalidImage, "image", {"image": b"no image"}),
        (InvalidImage, "image", {"image": picture(16, 300)}),
        (InvalidImage, "mask", {"image": picture(64, 64), "mask": b"no image"}),
        (InvalidRequest, "mask", {"image": picture(64, 64), "mask": picture(64, 128)}),
        (UnsupportedOperation, "control", {"control": picture(64, 64)}),
        (MissingAddon, "lora", {"lora": [{"name": "absent"}]}),
        (InvalidSize, "hires", {"hires": {"width": 4096, "height": 2048}}),
        (InvalidRequest, "hires", {"hires": {"scale": 1.1, "steps": 151}}),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_guards(kind: type[InvalidRequest], param: str, fields: dict[str, Any]) -> None:
    """What kills or corrupts the engine is refused before it is near, with the field that did it."""
    with pytest.raises(InvalidRequest) as caught:
        planned(entry(**SMALL), **fields)
    assert type(caught.value) is kind
    assert caught.value.param == param


def test_an_edit_needs_an_image() -> None:
    """The edits route without an image is a 400, not a generation."""
    with pytest.raises(InvalidRequest, match="at least one image"):
        planned(operation="edit")


def test_the_servers_bounds_hold_besides_the_models() -> None:
    """The smaller of both bounds counts, for steps, pixels and images."""
    for settings, fields in (
        ({"max_steps": 5}, {"steps": 6}),
        ({"max_pixels": 64 * 64}, {"size": "64x128"}),
        ({"max_images": 1}, {"n": 2}),
        ({"max_prompt_chars": 3}, {}),
        ({"max_input_pixels": 64 * 64}, {"image": picture(65, 65)}),
    ):
        with pytest.raises(InvalidRequest):
            planned(settings=settings, **fields)


def test_more_steps_than_the_model_takes_are_lowered() -> None:
    """Clients send 20 to every model; the answer says what was made of it."""
    result = planned(entry(limits={"max_steps": 4}), steps=20, size="128x128", hires={"steps": 9})
    assert result.spec.hires is not None
    assert (result.spec.steps, result.spec.hires.steps) == (4, 4)
    assert result.warnings == (
        "steps: some-model takes at most 4 steps; 20 were lowered to 4",
        "hires: some-model takes at most 4 steps; 9 were lowered to 4",
    )


def test_what_the_model_does_not_state_is_up_to_the_server() -> None:
    """No bound of a silent catalog entry comes before the administrator's."""
    settings = {"max_steps": 200, "max_side": 20_000, "max_pixels": 10**8}
    spec = planned(settings=settings, steps=200, size="16400x2050").spec
    assert (spec.steps, spec.width, spec.height) == (200, 16400, 2064)
    many = planned(entry("flux2"), "edit", image=[picture(64, 64)] * 16).spec
    assert len(many.ref_images) == 16


@given(st.integers(4096, 10**8), st.integers(64, 20_000))
def test_every_bound_can_be_reached(pixels: int, side: int) -> None:
    """The longest side with the shortest that goes with it is a size that is taken."""
    settings = Settings(max_pixels=pixels, max_side=side)
    longest = Bounds.of(entry(), settings).side
    made = planned(settings=settings.model_dump(), size=f"{longest}x{max(64, -(-longest // 8))}")
    assert made.width == longest


def test_bounds_are_inclusive() -> None:
    """What is just allowed goes through."""
    fields: dict[str, Any] = {"size": "512x192", "steps": 50, "n": 10, "prompt": "x" * 8000}
    spec = planned(entry(**SMALL), **fields).spec
    assert (spec.width, spec.height, spec.steps, spec.n, len(spec.prompt)) == (512, 192, 50, 10, 8000)


def test_schedules_that_cannot_be() -> None:
    """No zero sigmas and no NaN: the model's own schedule is used, or the engine's, and a note says so."""
    for family in ("sd1", "sd1-inpaint", "sdxl", "sdxl-inpaint"):
        assert planned(entry(family), schedule="ays").spec.schedule == "ays"
    for family in ("sd2", "sd3", "flux", "flux2", "chroma", "ovis-image", "qwen-image", "z-image"):
        made = planned(entry(family, defaults={"schedule": "simple"}), schedule="ays")
        assert made.spec.schedule == "simple"
        assert "'ays' is defined for SD 1.x and SDXL only" in made.warnings[0]
    hires = {"scale": 1.1, "steps": 1, "denoising_strength": 0.9}
    for schedule in ("gits", "karras", "exponential"):
        for fields in ({"steps": 1}, {"steps": 5, "hires": hires}):
            made = planned(schedule=schedule, **fields)
            assert made.spec.schedule == "default"
            assert made.warnings == (f"schedule: {schedule!r} needs at least 2 steps; 'default' was used",)
    own = planned(entry(defaults={"schedule": "karras"}), steps=1)
    assert own.spec.schedule == "default"


def test_other_schedules_take_one_step() -> None:
    """One step changes only the schedules that break on it."""
    for schedule in set(ABILITIES.schedules) - {"gits", "karras", "exponential", "ays"}:
        made = planned(steps=1, schedule=schedule)
        assert (made.spec.steps, made.spec.schedule, made.warnings) == (1, schedule, ())


def test_no_model_draws_transparency() -> None:
    """Asked for it, a model draws an opaque picture and says so."""
    assert "transparent" in planned(background="transparent").warnings[0]
    assert planned(background="opaque").warnings == ()


def test_sd3_has_no_side_above_3072() -> None:
    """sd.cpp asserts there; the catalog's limits cannot lift it, nor can a second pass."""
    model = entry("sd3", limits={"max_side": 8000, "max_pixels": 10**8})
    huge = {"max_pixels": 10**8}
    assert planned(model, settings=huge, size="3072x512").spec.width == 3072
    for fields in ({"size": "3088x512"}, {"size": "2048x512", "hires": {"scale": 2}}):
        spec = planned(model, settings=huge, **fields).spec
        assert (spec.hires or spec).width == 3072
        with pytest.raises(InvalidSize):
            planned(model, settings={**huge, "oversize": "refuse"}, **fields)


def test_hires_is_aligned_and_delivered() -> None:
    """The second pass has an aligned size, that size is the answer's; its steps default to the first's."""
    result = planned(entry("sd1"), size="128x192", steps=7, hires={"scale": 1.3})
    assert result.spec.hires is not None
    assert (result.spec.hires.width, result.spec.hires.height, result.spec.hires.steps) == (192, 256, 7)
    assert (result.width, result.height) == (192, 256)


def test_references_and_a_mask() -> None:
    """Flux.2 edits by reference, each in its own aspect; a mask keeps what lies outside of it."""
    image = picture(128, 128)
    spec = planned(entry("flux2"), "edit", image=[image, image]).spec
    assert (len(spec.ref_images), spec.init_image, spec.mask) == (2, None, None)
    wide = planned(entry("flux2"), "edit", image=[image, picture(256, 64)]).spec
    assert [(each.width, each.height) for each in wide.ref_images] == [(256, 256), (512, 128)]
    masked = planned(entry("flux2"), "edit", image=image, mask=picture(128, 128, "L", 255), strength=0.3)
    assert (len(masked.spec.ref_images), masked.spec.strength) == (1, 1.0)
    assert None not in (masked.spec.init_image, masked.spec.mask, masked.original, masked.mask)
    with pytest.raises(UnsupportedOperation):
        planned(entry("flux2", limits={"references": 1}), "edit", image=[image, image])


@pytest.mark.parametrize("family", ["sd1", "z-image", "flux", "qwen-image", "ovis-image"])
def test_no_references_where_they_are_poison(family: str) -> None:
    """Every other family starts from the image and gets no reference."""
    spec = planned(entry(family), "edit", image=picture(128, 128)).spec
    assert spec.ref_images == ()
    assert spec.init_image is not None


def test_models_that_follow_a_picture() -> None:
    """The image of an edit, or `control`, is what they draw along, from pure noise; never both."""
    canny = entry("flux-controls")
    result = planned(canny, "edit", image=picture(128, 128), strength=0.5)
    sent = planned(canny, control=picture(128, 128), size="256x256")
    assert result.spec.control_image == sent.spec.control_image is not None
    assert (result.spec.init_image, result.spec.ref_images, result.spec.strength) == (None, (), 1)
    assert result.warnings == ("strength: has no effect, some-model edits by control",)
    assert "no picture of edges or depth" in planned(canny).warnings[0]
    with pytest.raises(InvalidRequest, match="as 'image' or as 'control'"):
        planned(canny, "edit", image=picture(128, 128), control=picture(128, 128))


@pytest.mark.parametrize("family", ["qwen-image", "anima"])
def test_a_tiny_decoder_of_videos_reads_no_picture(family: str) -> None:
    """sd.cpp ends its process when it encodes a still picture by one; a VAE beside it does that."""
    tiny = entry(family, files={"taesd": Path("tiny.gguf")})
    with pytest.raises(UnsupportedOperation, match="cannot read pictures; use its VAE"):
        planned(tiny, "edit", image=picture(128, 128))
    both = entry(family, files={"taesd": Path("tiny.gguf"), "vae": Path("vae.gguf")})
    assert planned(both, "edit", image=picture(128, 128)).spec.init_image is not None


@pytest.mark.parametrize("family", ["sd1-inpaint", "sd2-inpaint", "sdxl-inpaint", "flux-fill"])
def test_inpainting_models_repaint_wholly(family: str) -> None:
    """Inpainting models run at strength 1 unless the request says otherwise."""
    mask = picture(128, 128, "L", 255)
    assert planned(entry(family), "edit", image=picture(128, 128), mask=mask).spec.strength == 1
    assert planned(entry(family), "edit", image=picture(128, 128), strength=0.5).spec.strength == 0.5


# -- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fields", "delivered", "aligned"),
    [
        ("sd1", {"size": "100x130"}, (100, 130), (128, 192)),
        ("sd1", {"size": "64x128"}, (64, 128), (64, 128)),
        ("flux", {"size": "100x130"}, (100, 130), (112, 144)),
        ("sd1", {"width": 100}, (100, 100), (128, 128)),
        ("sd1", {"height": 130}, (130, 130), (192, 192)),
        ("sd1", {"width": 100, "height": 130}, (100, 130), (128, 192)),
        ("sd1", {"size": "64x65", "width": 500}, (64, 65), (64, 128)),
        ("sd1", {"size": "auto"}, (256, 256), (256, 256)),
    ],
)
def test_sizes(
    family: str, fields: dict[str, Any], delivered: tuple[int, int], aligned: tuple[int, int]
) -> None:
    """The engine gets the size aligned up, the client the size asked for."""
    result = planned(entry(family), **fields)
    assert (result.width, result.height) == delivered
    assert (result.spec.width, result.spec.height) == aligned


@given(
    width=st.integers(64, 800), height=st.integers(64, 800), family=st.sampled_from(["sd1", "flux", "sd3"])
)
def test_every_size_fits(width: int, height: int, family: str) -> None:
    """The engine's size is a multiple, holds what was asked for, and is less than one multiple larger."""
    assume(max(width, height) <= 8 * min(width, height))
    model = entry(family)
    result = planned(model, size=f"{width}x{height}")
    for asked, made in ((width, result.spec.width), (height, result.spec.height)):
        assert made % model.traits.multiple == 0
        assert 0 <= made - asked < model.traits.multiple
    assert (result.width, result.height) == (width, height)


@pytest.mark.parametrize(
    ("image", "size"),
    [((300, 300), (256, 256)), ((512, 256), (368, 176)), ((256, 512), (176, 368)), ((64, 512), (64, 512))],
)
def test_an_edit_keeps_the_aspect(image: tuple[int, int], size: tuple[int, int]) -> None:
    """Without a size an edit has its input's aspect at the model's budget, no side below 64."""
    result = planned(entry(limits={"max_side": 512}), "edit", image=picture(*image))
    assert (result.width, result.height) == size


def test_an_edits_size_respects_the_servers_bound() -> None:
    """The budget is the model's or the server's, whichever is smaller; 8:1 does not go below 64 pixels."""
    result = planned(settings={"max_pixels": 128 * 128}, operation="edit", image=picture(256, 256))
    assert (result.width, result.height) == (128, 128)
    narrow = planned(entry(defaults={"size": "128x128"}), "edit", image=picture(800, 100))
    assert narrow.height == 64


def test_inputs_have_the_engines_size() -> None:
    """Image and mask reach the engine at the aligned size; what is kept is at the delivered size."""
    result = planned(
        entry("sd1"), "edit", size="100x130", image=picture(100, 130), mask=picture(100, 130, "L", 255)
    )
    spec = result.spec
    assert spec.init_image is not None
    assert spec.mask is not None
    assert result.original is not None
    assert result.mask is not None
    assert [(i.width, i.height, i.channels) for i in (spec.init_image, spec.mask)] == [
        (128, 192, 3), (128, 192, 1),
    ]  # fmt: skip
    assert [(i.width, i.height) for i in (result.original, result.mask)] == [(100, 130)] * 2
    assert set(spec.mask.data) == {255}


def test_an_opaque_edit_keeps_nothing() -> None:
    """Without a mask nothing of the original is put back over the result."""
    result = planned(operation="edit", image=picture(128, 128))
    assert (result.original, result.mask, result.spec.mask) == (None, None, None)


def test_transparency_of_the_image_is_its_mask() -> None:
    """OpenAI's way: no mask, but an image with a hole."""
    image = Image.new("RGBA", (128, 128), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 128, 64))
    out = io.BytesIO()
    image.save(out, "PNG")
    result = planned(operation="edit", size="128x128", image=out.getvalue())
    assert result.mask is not None
    assert result.mask.data == b"\xff" * (128 * 64) + b"\0" * (128 * 64)


# -- text ---------------------------------------------------------------------------------------------

SD_CPP_WEIGHT = re.compile(r":([+-]?[.0-9]+)\)")
"""The weight in the regex of `parse_prompt_attention`, sd.cpp's util.cpp; it goes to std::stof."""


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("(x:1.2) (y:0) (z:.5) (w:10)", "(x:1.2) (y:0) (z:.5) (w:10)"),
        ("what (is this:...)", "what (is this: ...)"),
        ("(x:.)", "(x: .)"),
        ("(x:1.2.3)", "(x: 1.2.3)"),
        ("(x:11)", "(x: 11)"),
        ("(x:-1)", "(x: -1)"),
        (f"(x:{'9' * 500})", f"(x: {'9' * 500})"),
        ("a:b) 10:30 (no weight)", "a:b) 10:30 (no weight)"),
    ],
)
def test_emphasis(text: str, mended: str) -> None:
    """Plain weights from 0 to 10 stay; every other becomes text by a space."""
    assert neutralise_emphasis(text) == mended


@given(st.text(alphabet="(:x.0123456789)+-[] \\BREAK٣e", max_size=60))
@example("(x:" + "1" * 400 + ")")
@example("::.):+)")
def test_no_poisonous_weight_remains(text: str) -> None:
    """Of what sd.cpp takes for a weight, all that remains is a number in [0, 10]."""
    for weight in SD_CPP_WEIGHT.findall(neutralise_emphasis(text)):
        assert 0 <= float(weight) <= 10


@pytest.mark.parametrize("prompt", ["(" * 16 + "x" + ")" * 16, "(x) [y] " * 100, r"\(" * 50, ")" * 50])
def test_brackets_may_nest_a_little(prompt: str) -> None:
    """Sixteen levels, many brackets side by side, escaped ones and closing ones are all fine."""
    assert planned(prompt=prompt).spec.prompt == prompt


@given(st.text(alphabet="(:x.0123456789)", max_size=40))
def test_emphasis_loses_no_character(text: str) -> None:
    """Only spaces are added."""
    assert neutralise_emphasis(text).replace(" ", "") == text


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("a <lora:x:1> fox", "a  fox"),
        ("fox<lora:/etc/passwd:nan>", "fox"),
        ("fox<lora:a<lora:b:1>:1>", "fox"),
        ("fox<lo<lora:b:1>ra:a:1>", "fox"),
        ("(fox:<lora:a:1>.)", "(fox: .)"),
    ],
)
def test_lora_tags_are_removed(prompt: str, left: str) -> None:
    """No tag is left, not even one made by the removal of another; a warning names the right field."""
    result = planned(prompt=prompt, negative_prompt=prompt)
    assert (result.spec.prompt, result.spec.negative_prompt) == (left, left)
    assert [warning.split(":")[0] for warning in result.warnings] == ["prompt", "negative_prompt"]
    assert all("'lora'" in warning for warning in result.warnings)


def test_a_step_cache_of_another_kind_of_network_is_left_out() -> None:
    """A UNet's cache on a transformer, and the other way round: all steps, and a warning."""
    for family, cache, used in (
        ("ovis-image", "ucache", "none"),
        ("ovis-image", "dbcache", "dbcache"),
        ("sd1", "ucache", "ucache"),
        ("sd1", "dbcache", "none"),
    ):
        result = planned(entry(family), step_cache=cache)
        assert result.spec.step_cache == used
        assert len(result.warnings) == (used == "none")


def test_characters_that_the_tokenizer_must_not_see() -> None:
    """Private and unassigned planes go, with a warning; emoji, Han and what is written with them stay."""
    kept = "fox 🦊👩‍🎨 漢 \U00020000\U0002ebf0\U00030000 \ue000\ufffd"
    assert planned(prompt=kept).warnings == ()
    assert planned(prompt=kept).spec.prompt == kept
    result = planned(prompt="a\U0002b81e f\U000b1a17o\U000e0020x\U0010fffd")
    assert result.spec.prompt == "a fox"
    assert len(result.warnings) == 1


def test_warnings_of_the_request_are_kept() -> None:
    """What the parser warned of reaches the answer."""
    assert planned(odd=1).warnings == ("unknown field 'odd' was ignored",)


_LORA_HEADER = b'{"x.lora_down.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
LORA = len(_LORA_HEADER).to_bytes(8, "little") + _LORA_HEADER + bytes(4)
"""The least safetensors file that is a LoRA."""


def test_loras_come_from_the_folder_only(model_dir: Path, tmp_path: Path) -> None:
    """A bare name finds its file; a path, a parent, another suffix or a missing folder finds nothing."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("loras/ink.safetensors", "loras/old.safetensors", "loras/notes.txt", "outside.safetensors"):
        write_safetensors(tmp_path / name, product("diffusion_model.img_in", 128, 64))
    settings = {"lora_dir": folder, "models_dir": model_dir}
    model = entry(files={"model": Path("tiny-random.gguf")})
    for name, file in (("ink", "ink.safetensors"), ("old.safetensors", "old.safetensors")):
        (lora,) = planned(model, settings=settings, lora=[{"name": name, "scale": -0.5}]).spec.loras
        assert (lora.path, lora.scale) == (folder / file, -0.5)
    outside = [
        "../outside",
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "notes.txt",
        ".",
    ]
    for name in outside:
        with pytest.raises(InvalidRequest, match="known: ink, old"):
            planned(settings=settings, lora=[{"name": name}])
    with pytest.raises(InvalidRequest, match="--lora-dir"):
        planned(settings={"lora_dir": tmp_path / "absent"}, lora=[{"name": "ink"}])


def test_broken_loras_never_reach_the_engine(tmp_path: Path) -> None:
    """A file that is cut short, or is no LoRA, is refused by its header."""
    (tmp_path / "short.safetensors").write_bytes(LORA[:-1])
    (tmp_path / "other.safetensors").write_bytes(LORA.replace(b"lora_down", b"something"))
    with pytest.raises(InvalidModelFile, match="cut short"):
        planned(settings={"lora_dir": tmp_path}, lora=[{"name": "short"}])
    with pytest.raises(InvalidRequest, match="no LoRA file"):
        planned(settings={"lora_dir": tmp_path}, lora=[{"name": "other"}])


# -- previews -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "count", "marks"),
    [(20, 0, ()), (20, 1, (10,)), (20, 3, (5, 10, 15)), (9, 2, (3, 6)), (4, 3, (1, 2, 3)), (2, 3, (1,)),
     (1, 3, ())],
)  # fmt: skip
def test_partial_images_are_spread_evenly(steps: int, count: int, marks: tuple[int, ...]) -> None:
    """As many as asked for, as far as the steps go, evenly, and never after the last step."""
    result = planned(steps=steps, partial_images=count)
    assert result.partial_steps == marks
    assert result.spec.preview_steps == marks


@given(steps=st.integers(1, 150), count=st.integers(0, 3), strength=st.floats(0, 1))
def test_partial_steps_lie_inside_the_sampling(steps: int, count: int, strength: float) -> None:
    """For any strength the marks ascend inside the steps that really run."""
    result = planned(operation="edit", image=PICTURE, steps=steps, partial_images=count, strength=strength)
    total = result.spec.sampling_steps
    marks = result.partial_steps
    assert list(marks) == sorted(set(marks))
    assert all(0 < mark < total for mark in marks)
    if total > count:
        assert len(marks) == count
        gaps = [b - a for a, b in zip((0, *marks), (*marks, total), strict=True)]
        assert max(gaps) <= math.ceil(total / (count + 1))


PICTURE = picture(64, 64)


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(20, 1.0, 20), (20, 0.75, 16), (20, 0.5, 11), (20, 0.0, 1), (20, 0.99, 20), (1, 0.5, 1), (10, 0.35, 4)],
)
def test_image_to_image_runs_fewer_steps(steps: int, strength: float, run: int) -> None:
    """sd.cpp runs min(int(steps * strength), steps - 1) + 1 steps; without an image, all of them."""
    spec = planned(operation="edit", image=PICTURE, steps=steps, strength=strength).spec
    assert spec.sampling_steps == run
    assert planned(steps=steps, strength=strength).spec.sampling_steps == steps


@pytest.mark.parametrize(
    ("files", "fields", "mode"),
    [
        ({}, {}, "none"),
        ({}, {"partial_images": 0}, "none"),
        ({}, {"partial_images": 1}, "proj"),
        ({}, {"stream_options": {"preview": True}}, "proj"),
        ({"taesd": Path("tae.gguf")}, {"partial_images": 1}, "tae"),
        ({"taesd": Path("tae.gguf")}, {"stream_options": {"preview": "vae"}}, "vae"),
    ],
)
def test_preview_modes(files: dict[str, Path], fields: dict[str, Any], mode: str) -> None:
    """The best preview that costs little, unless one is named; none where none is asked for."""
    assert planned(entry(files=files), **fields).spec.preview == mode


def test_previews_of_every_step_are_not_thinned() -> None:
    """llama-box's preview wants every step, also when OpenAI's partial images are asked for."""
    result = planned(stream_options={"preview": True}, partial_images=2, steps=9)
    assert (result.partial_steps, result.spec.preview_steps) == ((3, 6), ())


def test_the_shipped_models_can_be_planned(tmp_path: Path) -> None:
    """Every entry of the shipped catalog and each of its quality presets makes a plan."""
    for model in load_catalog(tmp_path).entries:
        for quality in (None, *model.quality):
            spec = planned(model, quality=quality).spec
            assert spec.steps == (model.quality[quality] if quality else model.defaults.steps)
