"""sd.cpp's native request schema and its way into prompts: meaning, defaults, wrong types, hostile JSON."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_imagegen.api.dialects.sdcpp.extra_args import CLOSING, MAX_BLOCKS, OPENING, with_extra_args
from gguf_imagegen.api.dialects.sdcpp.request import LEAVES, merged, native_name, to_fields
from gguf_imagegen.planning.engine_fields import StepCacheOptions
from gguf_imagegen.planning.request import ImageRequest, parse_request
from gguf_imagegen.vocabulary.errors import InvalidRequest, InvalidSize

PIXEL = b"any bytes"
PIXEL_64 = base64.b64encode(PIXEL).decode()
SAMPLE_METHODS = (
    "euler", "euler_a", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "ipndm", "ipndm_v", "lcm",
    "ddim_trailing", "tcd", "res_multistep", "res_2s", "er_sde",
)  # fmt: skip
"""`sample_method_to_str` of stable-diffusion.cpp."""
SCHEDULERS = (
    "discrete", "karras", "exponential", "ays", "gits", "sgm_uniform", "simple", "smoothstep", "kl_optimal",
    "lcm", "bong_tangent",
)  # fmt: skip
"""`scheduler_to_str` of stable-diffusion.cpp."""

EXAMPLE: dict[str, Any] = {
    "prompt": "a cat sitting on a chair", "negative_prompt": "", "clip_skip": -1, "width": 1024,
    "height": 1024, "strength": 0.75, "seed": -1, "batch_count": 1, "auto_resize_ref_image": True,
    "increase_ref_index": False, "control_strength": 0.9, "embed_image_metadata": True, "init_image": None,
    "ref_images": [], "mask_image": None, "control_image": None,
    "sample_params": {
        "scheduler": "discrete", "sample_method": "euler_a", "sample_steps": 28, "eta": 1.0,
        "shifted_timestep": 0, "custom_sigmas": [], "flow_shift": 0.0,
        "guidance": {
            "txt_cfg": 7.0, "img_cfg": 7.0, "distilled_guidance": 3.5,
            "slg": {"layers": [7, 8, 9], "layer_start": 0.01, "layer_end": 0.2, "scale": 0.0},
        },
    },
    "lora": [],
    "hires": {
        "enabled": False, "upscaler": "Latent", "scale": 2.0, "target_width": 0, "target_height": 0,
        "steps": 0, "denoising_strength": 0.7, "upscale_tile_size": 128,
    },
    "vae_tiling_params": {
        "enabled": False, "tile_size_x": 0, "tile_size_y": 0, "target_overlap": 0.5, "rel_size_x": 0.0,
        "rel_size_y": 0.0,
    },
    "cache_mode": "disabled", "cache_option": "", "scm_mask": "", "scm_policy_dynamic": True,
    "output_format": "png", "output_compression": 100,
}  # fmt: skip
"""The request body of sd.cpp's own documentation (examples/server/api.md)."""


def nested(path: str, value: Any) -> dict[str, Any]:
    """The native object with this one field."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def parsed(native: dict[str, Any]) -> tuple[ImageRequest, list[str]]:
    return parse_request(to_fields(native))


def warnings(native: dict[str, Any]) -> list[str]:
    return parsed(native)[1]


def hires(**fields: Any) -> Any:
    return parsed({"hires": {"enabled": True, **fields}})[0].hires


def block(value: Any) -> str:
    return f"{OPENING}{value if isinstance(value, str) else json.dumps(value)}{CLOSING}"


def refused(prompt: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        with_extra_args({"prompt": prompt})
    assert caught.value.param == "prompt"
    return str(caught.value)


# -- meaning ------------------------------------------------------------------------------------------


def test_the_documented_example_is_understood_whole() -> None:
    """sd.cpp's own example says nothing that is ignored, and its defaults ask for nothing."""
    request, notes = parsed(EXAMPLE)
    assert notes == []
    assert request.model_dump(exclude_unset=True) == {
        "prompt": "a cat sitting on a chair", "width": 1024, "height": 1024, "n": 1,
        "control_strength": 0.9, "schedule": "discrete", "sampler": "euler_a", "steps": 28, "eta": 1.0,
        "cfg_scale": 7.0, "image_cfg_scale": 7.0, "guidance": 3.5, "slg_skip_layers": (7, 8, 9),
        "slg_start": 0.01, "slg_end": 0.2, "slg_scale": 0.0, "vae_tiling": False,
        "step_cache": "none", "output_format": "png",
        "increase_ref_index": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "field", "meant"),
    [
        ("prompt", "x", "prompt", "x"),
        ("negative_prompt", "fog", "negative_prompt", "fog"),
        ("clip_skip", 2, "clip_skip", 2),
        ("width", 192.0, "width", 192),
        ("seed", 2**53 - 1, "seed", 2**53 - 1),
        ("seed", -7, "seed", None),
        ("batch_count", 3, "n", 3),
        ("batch_count", 0, "n", None),
        ("mask_image", PIXEL_64, "mask", PIXEL),
        ("control_image", f"data:image/png;base64,{PIXEL_64}", "control", PIXEL),
        ("sample_params.sample_method", "default", "sampler", None),
        ("sample_params.scheduler", " Karras", "schedule", "karras"),
        ("sample_params.scheduler", "default", "schedule", None),
        ("sample_params.sample_steps", -1, "steps", None),
        ("sample_params.flow_shift", 3, "flow_shift", 3.0),
        ("sample_params.flow_shift", "", "flow_shift", None),
        ("sample_params.guidance.slg.layers", [3], "slg_skip_layers", (3,)),
        ("vae_tiling_params.enabled", True, "vae_tiling", True),
        ("sample_params.custom_sigmas", [14.6, 1, 0], "custom_sigmas", (14.6, 1.0, 0.0)),
        ("sample_params.shifted_timestep", 250, "shifted_timestep", 250),
        ("increase_ref_index", True, "increase_ref_index", True),
        ("cache_mode", "easycache", "step_cache", "easycache"),
        ("output_format", "JPEG", "output_format", "jpeg"),
        ("output_compression", 800, "output_compression", None),
        ("output_compression", -1, "output_compression", 0),
    ],
)
def test_native_fields_mean_ours(path: str, value: Any, field: str, meant: Any) -> None:
    """A native value, and sd.cpp's ways to say "unset", arrive in the canonical field without a warning."""
    request, notes = parsed(nested(path, value))
    assert (getattr(request, field), notes) == (meant, [])


@pytest.mark.parametrize("name", SAMPLE_METHODS)
def test_every_sample_method_of_sdcpp_is_known(name: str) -> None:
    assert parsed(nested("sample_params.sample_method", name))[0].sampler == name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_sdcpp_is_known(name: str) -> None:
    assert parsed(nested("sample_params.scheduler", name))[0].schedule == name


def test_details_of_step_caches() -> None:
    """sd.cpp's text of options, whose warm-up depends on the mode; without a mode it is silent."""
    cache = {"cache_option": "threshold=0.3, warmup=5,Fn=2", "scm_mask": "1,0,1", "scm_policy_dynamic": False}
    request, notes = parsed({"cache_mode": "dbcache", **cache})
    options: dict[str, Any] = {
        "max_warmup_steps": 5,
        "Fn_compute_blocks": 2,
        "scm_mask": "1,0,1",
        "scm_policy_dynamic": False,
    }
    assert (request.step_cache_threshold, notes) == (0.3, [])
    assert request.step_cache_options == StepCacheOptions(**options)
    spectrum = parsed({"cache_mode": "spectrum", "cache_option": "warmup=5,w=0.1"})[0].step_cache_options
    assert spectrum == StepCacheOptions(spectrum_warmup_steps=5, spectrum_w=0.1)
    silent = parsed(cache)[0]
    assert (silent.step_cache_threshold, silent.step_cache_options) == (None, None)
    with pytest.raises(InvalidRequest, match="cache_option: 'speed=9' must be NAME=VALUE; names: threshold"):
        to_fields({"cache_mode": "dbcache", "cache_option": "speed=9"})


def test_tiles_of_the_vae() -> None:
    """A side alone is both; without tiling they say nothing, and sd.cpp's own overlap leaves it to us."""
    tiles = {"enabled": True, "tile_size_x": 48, "tile_size_y": 64, "target_overlap": 0.3}
    request, notes = parsed({"vae_tiling_params": tiles})
    assert (request.vae_tiling, request.vae_tile_size, request.vae_tile_overlap) == (True, (48, 64), 0.3)
    assert notes == []
    request = parsed({"vae_tiling_params": {**tiles, "tile_size_x": 0, "target_overlap": 0.5}})[0]
    assert (request.vae_tile_size, request.vae_tile_overlap) == ((64, 64), None)
    assert parsed({"vae_tiling_params": {**tiles, "enabled": False}})[0].vae_tile_size is None


def test_compression_of_lossy_formats_is_kept() -> None:
    """100 is the best quality of a JPEG; of a PNG it would only be slow."""
    jpeg, png = ({"output_format": name, "output_compression": 100} for name in ("jpeg", "png"))
    assert parsed(jpeg)[0].output_compression == 100
    assert parsed(png)[0].output_compression is None


def test_pictures_come_in_order() -> None:
    """The init image first, then the references; all are the inputs of one edit."""
    other = base64.b64encode(b"other").decode()
    assert parsed({"ref_images": [other], "init_image": PIXEL_64})[0].image == (PIXEL, b"other")
    assert parsed({"ref_images": [other]})[0].image == (b"other",)


def test_loras_are_named_by_path_or_name() -> None:
    """Both keys name a file of the folder, and the multiplier is its scale."""
    items = [{"path": "a.gguf", "multiplier": 0.5, "is_high_noise": False}, {"name": "b", "multiplier": None}]
    request, notes = parsed({"lora": items})
    assert [(lora.name, lora.scale) for lora in request.lora] == [("a.gguf", 0.5), ("b", 1.0)]
    assert notes == []
    assert warnings({"lora": [{"path": "a", "is_high_noise": True}]}) == [
        "unknown field 'lora[].is_high_noise' was ignored"
    ]


def test_hires_as_sdcpp_resolves_it() -> None:
    """Off unless enabled, off for "None"; one target side is both, and targets go before the scale."""
    assert parsed({"hires": {"scale": 3}})[0].hires is None
    assert hires(upscaler="None") is None
    assert (hires().scale, hires().steps, hires().upscaler) == (2.0, None, "latent")
    assert (hires(scale=1.5, steps=4).scale, hires(steps=4).steps) == (1.5, 4)
    both = hires(target_width=128, target_height=192, scale=0.5, upscaler="Lanczos")
    assert (both.width, both.height, both.upscaler) == (128, 192, "Lanczos")
    one = hires(target_height=192)
    assert (one.width, one.height) == (192, 192)


def test_other_keys_stay() -> None:
    """Fields of ours work in a native request; the native ones of the same meaning go before them."""
    fields = to_fields({"model": "m", "steps": 4, "keep_alive": 9, **nested("sample_params.sample_steps", 5)})
    assert fields == {"model": "m", "steps": 5, "keep_alive": 9}


# -- what has no effect -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("auto_resize_ref_image", False),
        ("vae_tiling_params.rel_size_x", 0.5),
        ("embed_image_metadata", False),
        ("sample_params.guidance.unheard_of", 1),
        ("fps", 16),
    ],
)
def test_what_cannot_be_honoured_is_named(path: str, value: Any) -> None:
    """Accepted, and the answer says that it had no effect."""
    assert warnings(nested(path, value)) == [f"unknown field {path!r} was ignored"]


def test_all_defaults_pass_in_silence() -> None:
    """A client that sends every field back with its default gets no warning."""
    for path, leaf in LEAVES.items():
        assert warnings(nested(path, leaf.default)) == [], path


# -- wrong types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LEAVES)
def test_wrong_types_are_refused_by_name(path: str) -> None:
    """An object where none can be is a 400 that names the field by its native path."""
    with pytest.raises(InvalidRequest) as caught:
        to_fields(nested(path, {"un": "fit"}))
    assert caught.value.param == path
    assert str(caught.value).startswith(f"{path}: must ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sample_params", 3),
        ("sample_params.guidance.slg", [1]),
        ("width", True),
        ("width", 1.5),
        ("width", float("inf")),
        ("seed", "5"),
        ("strength", "0.5"),
        ("ref_images", PIXEL_64),
        ("sample_params.custom_sigmas", ["a"]),
        ("sample_params.guidance.slg.layers", [1.5]),
        ("lora", {"path": "a"}),
        ("lora", ["a"]),
        ("lora", [{"multiplier": 1}]),
        ("lora", [{"path": "a", "is_high_noise": "yes"}]),
        ("scm_policy_dynamic", 1),
    ],
)
def test_nearly_right_types_are_refused_too(path: str, value: Any) -> None:
    """Text is no number, a truth is no number, and a lone thing is no list of it."""
    with pytest.raises(InvalidRequest) as caught:
        to_fields(nested(path, value))
    assert caught.value.param == path


def test_canonical_names_are_told_in_native_words() -> None:
    assert native_name("steps") == "sample_params.sample_steps"
    assert native_name("image") == "init_image"
    assert (native_name("model"), native_name(None)) == ("model", None)


# -- inside a prompt ----------------------------------------------------------------------------------


def test_extra_args_go_before_the_fields_around_them() -> None:
    """The block leaves the prompt, and what it says wins over the same field by any of its names."""
    native = {"sample_params": {"sample_steps": 28}, "seed": 3, "negative_prompt": "fog"}
    fields = {"prompt": f"a cat {block(native)}", "num_inference_steps": 4, "n": 2}
    request, notes = parse_request(with_extra_args(fields))
    assert (request.prompt, request.steps, request.seed) == ("a cat", 28, 3)
    assert (request.negative_prompt, request.n) == ("fog", 2)
    assert notes == ["field 'num_inference_steps' was ignored: 'steps' was given too"]


def test_prompts_without_extra_args_are_untouched() -> None:
    fields = {"prompt": f" a cat{CLOSING} ", "steps": 4}
    assert with_extra_args(fields) is fields
    assert with_extra_args({"steps": 4}) == {"steps": 4}
    assert with_extra_args({"prompt": 5}) == {"prompt": 5}


def test_several_blocks_add_up() -> None:
    """Text around them stays, a later block goes before an earlier one, and empty ones say nothing."""
    prompt = f"a {block({'seed': 1, 'width': 64})}big {block('')}cat{block({'seed': 2})}"
    assert with_extra_args({"prompt": prompt}) == {"prompt": "a big cat", "seed": 2, "width": 64}


def test_a_block_may_hold_the_prompt() -> None:
    assert with_extra_args({"prompt": f"a {block({'prompt': 'a dog'})}"}) == {"prompt": "a dog"}


@pytest.mark.parametrize(
    ("size", "said", "expected"),
    [
        ("512x256", {"width": 64}, (64, 256)),
        ("512x256", {"height": 64}, (512, 64)),
        ("512x256", {"width": 64, "height": 128}, (64, 128)),
        ("auto", {"width": 64}, (64, None)),
    ],
)
def test_sides_replace_a_size(size: str, said: dict[str, int], expected: tuple[int, int | None]) -> None:
    """A size is the more specific one of ours; without care it would beat the width that was said last."""
    request = parse_request(merged({"size": size}, said))[0]
    assert (request.size, request.width, request.height) == (None, *expected)


def test_a_size_stays_where_no_side_is_said() -> None:
    assert merged({"size": "64x64", "n": 1}, {"n": 2}) == {"size": "64x64", "n": 2}
    assert merged({"width": 8}, {"size": "64x64"})["size"] == "64x64"
    with pytest.raises(InvalidSize):
        merged({"size": "huge"}, {"width": 64})


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("{", "not valid JSON at character 1"),
        ("[" * 100_000, "more than 10000 values"),
        ("[" * 33, "more than 32 levels"),
        ("1" * 5000, "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"width": "wide"}', "width: must be a whole number"),
        ('{"sample_params": 4}', "sample_params: must be an object"),
    ],
)
def test_malformed_extra_args_are_refused(inside: str, words: str) -> None:
    """Whatever is wrong in a block is a 400 on the prompt that says what and where."""
    assert words in refused(f"a cat {block(inside)}")


def test_unended_and_too_many_blocks_are_refused() -> None:
    """Neither is drawn, nor does it take long."""
    assert f"needs its {CLOSING}" in refused(f"a cat {OPENING}{{}}")
    assert f"at most {MAX_BLOCKS}" in refused(OPENING * 1_000_000)


# -- anything at all ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({name for path in LEAVES for name in path.split(".")} | {"size", "name", "n"}))
NATIVE = st.recursive(
    st.dictionaries(NAMES | st.text(max_size=4), JSON, max_size=4),
    lambda inner: st.dictionaries(NAMES, inner | JSON | st.lists(inner, max_size=2), max_size=4),
    max_leaves=4,
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "sample_params": NATIVE, "hires": NATIVE, "lora": st.lists(NATIVE, max_size=2), "prompt": st.text(),
        "vae_tiling_params": NATIVE, "size": st.just("64x64"), "ref_images": JSON, "width": JSON,
    },
)  # fmt: skip


@given(NATIVE | LIKELY)
def test_any_json_is_a_request_or_an_invalid_one(native: dict[str, Any]) -> None:
    """No JSON makes the mapping or what follows it raise anything but InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        parse_request(to_fields(native))


@given(st.text() | (NATIVE | LIKELY).map(json.dumps), NATIVE, st.text(max_size=9))
def test_any_extra_args_are_fields_or_an_invalid_request(
    inside: str, fields: dict[str, Any], text: str
) -> None:
    """Whatever stands in a block, and in the fields around it, ends in fields or in InvalidRequest."""
    prompt = f"{text}{OPENING}{inside}{CLOSING}{text}"
    with contextlib.suppress(InvalidRequest):
        assert with_extra_args({**fields, "prompt": prompt})["prompt"] != prompt
