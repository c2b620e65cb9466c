"""AUTOMATIC1111's keys and names in our own words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gguf_imagegen.api.dialects.a1111 import request as a1111
from gguf_imagegen.api.dialects.a1111.inputs import input_images
from gguf_imagegen.api.dialects.a1111.names import (
    SAMPLERS,
    SCHEDULES,
    sampler_label,
    sampler_of,
    schedule_label,
    schedule_of,
    take_loras,
)
from gguf_imagegen.api.dialects.a1111.request import SAME, A1111Request, Translated, translate
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.pictures import masks
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.vocabulary.errors import (
    ImagegenError,
    InvalidImage,
    InvalidRequest,
    UnknownSampler,
    UnsupportedOperation,
)
from tests.api.client import data_url, noise, picture, png

LORAS = ("ink", "old-film", "_[style] 日本語", "a:b", "people/anna", "x/twice", "y/twice")


def told(img2img: bool = False, **data: Any) -> Translated:
    return translate({"prompt": "a cat", **data}, img2img=img2img, loras=LORAS)


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("Euler a", "euler_a", None),
        ("euler a", "euler_a", None),
        ("k_euler_ancestral", "euler_a", None),
        ("Euler", "euler", None),
        ("Heun", "heun", None),
        ("DPM2", "dpm2", None),
        ("DPM++ 2S a", "dpm++2s_a", None),
        ("DPM++ 2S a Karras", "dpm++2s_a", "karras"),
        ("DPM++ 2M", "dpm++2m", None),
        ("DPM++ 2M Karras", "dpm++2m", "karras"),
        ("DPM++ 2M SGM Uniform", "dpm++2m", "sgm_uniform"),
        ("k_dpmpp_2m_ka", "dpm++2m", "karras"),
        ("DPM++ 2M v2 Exponential", "dpm++2mv2", "exponential"),
        ("DDIM", "ddim_trailing", None),
        ("LCM", "lcm", None),
        ("IPNDM", "ipndm", None),
        ("IPNDM_V", "ipndm_v", None),
        ("TCD", "tcd", None),
        ("dpm++2mv2", "dpm++2mv2", None),
        ("", None, None),
        ("Automatic", None, None),
    ],
)
def test_sampler_names(name: str, sampler: str | None, schedule: str | None) -> None:
    """Display names, aliases and our own names; a schedule may stand at the end."""
    assert sampler_of(name) == (sampler, schedule)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("automatic", None),
        ("Automatic", None),
        ("None", None),
        ("", None),
        ("Use same scheduler", None),
        ("Karras", "karras"),
        ("Exponential", "exponential"),
        ("SGM Uniform", "sgm_uniform"),
        ("SGMUniform", "sgm_uniform"),
        ("Simple", "simple"),
        ("Normal", "discrete"),
        ("Uniform", "discrete"),
        ("Align Your Steps", "ays"),
        ("align_your_steps_GITS", "gits"),
        ("KL Optimal", "kl_optimal"),
        ("Beta", "smoothstep"),
        ("discrete", "discrete"),
        ("bong_tangent", "bong_tangent"),
    ],
)
def test_scheduler_names(name: str, schedule: str | None) -> None:
    """Names, labels and our own names; "automatic" leaves it to the model."""
    assert schedule_of(name) == schedule


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Euler b", "did you mean 'Euler a'"),
        ("Best", "Valid: Euler a"),
        ("DPM++ 2N", "did you mean 'DPM++ 2M'"),
    ],
)
def test_unknown_samplers_are_refused(name: str, words: str) -> None:
    """The answer lists the valid labels, and the nearest one if any is near."""
    with pytest.raises(UnknownSampler) as caught:
        sampler_of(name)
    assert words in caught.value.message
    assert caught.value.param == "sampler_name"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DPM++ SDE", ("dpm++2s_a", None)),
        ("DPM++ SDE Karras", ("dpm++2s_a", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpm++2m", "exponential")),
        ("DPM++ 2M SDE Heun", ("dpm++2m", None)),
        ("DPM++ 3M SDE", ("dpm++2m", None)),
        ("UniPC", ("dpm++2m", None)),
        ("LMS Karras", ("ipndm", "karras")),
        ("PLMS", ("ipndm", None)),
        ("Restart", ("heun", None)),
        ("DPM2 a", ("dpm2", None)),
        ("euler_ancestral", ("euler_a", None)),
    ],
)
def test_solvers_that_are_not_here(name: str, nearest: tuple[str, str | None]) -> None:
    """The nearest one draws, and the answer says so."""
    assert sampler_of(name) == nearest
    (warning,) = told(sampler_name=name).warnings
    assert warning.startswith(f"sampler_name: {name!r} is not known here; ")


def test_the_models_own_sampler() -> None:
    """Of the two names for it, A1111's own is what every client sends."""
    assert told(sampler_name="Default").fields == told(sampler_name="Automatic").fields
    assert told(sampler_name="Default").warnings == ["sampler_name: 'Default' means the model's own"]
    assert told(sampler_name="Automatic", scheduler="Automatic").warnings == []


EMPTY: list[Any] = [None, "", [], {}]


@pytest.mark.parametrize("nothing", EMPTY, ids=repr)
def test_nothing_is_not_something(nothing: Any) -> None:
    """A key without a value is a key not said, whatever the type of its field."""
    for key in A1111Request.model_fields.keys() | set(SAME):
        result = translate({"prompt": "a cat", key: nothing}, img2img=False, loras=())
        assert result.warnings == []
        parse_request(result.fields)


def test_zero_is_not_said() -> None:
    """Of how many and how large; of a scale up to 1 no second pass is made."""
    zero: dict[str, Any] = dict.fromkeys(("steps", "width", "height", "batch_size", "n_iter"), 0)
    request, _ = parse_request(told(**zero).fields)
    assert (request.steps, request.width, request.height, request.n) == (None, None, None, 1)
    for scale in (0, 0.5, 1, 1.0):
        assert parse_request(told(enable_hr=True, hr_scale=scale).fields)[0].hires is None
    assert parse_request(told(enable_hr=True, hr_scale=1, hr_resize_x=128).fields)[0].hires is not None


@pytest.mark.parametrize("name", ["Polyexponential", "Karras Exponential", "Turbo", "DDIM"])
def test_unknown_schedulers_are_refused(name: str) -> None:
    """Schedules that this engine does not have are not replaced in silence."""
    with pytest.raises(UnknownSampler, match="unknown scheduler") as caught:
        schedule_of(name)
    assert "Automatic, Normal, Karras" in caught.value.message


def test_every_sampler_and_schedule_has_a_label_that_leads_back() -> None:
    """What the lists say can be sent back, in every spelling."""
    assert set(SAMPLERS) == set(ABILITIES.samplers)
    assert set(SCHEDULES) == set(ABILITIES.schedules)
    for ours, (label, aliases) in SAMPLERS.items():
        assert {sampler_of(name) for name in (ours, label, *aliases)} == {(ours, None)}
        assert sampler_label(ours) == label
    for ours, (name, label, aliases) in SCHEDULES.items():
        assert {schedule_of(each) for each in (ours, name, label, *aliases)} == {ours}
        assert schedule_label(ours) == label


@given(st.sampled_from(sorted(SAMPLERS)), st.sampled_from(sorted(SCHEDULES)))
def test_a_schedule_after_any_sampler(sampler: str, schedule: str) -> None:
    """Both are found, whatever the pair."""
    assert sampler_of(f"{SAMPLERS[sampler][0]} {SCHEDULES[schedule][1]}") == (sampler, schedule)


@given(st.text(max_size=40) | st.text(alphabet="DPM+ 2Sakrs_eulNo", max_size=20))
def test_any_text_is_a_name_or_a_clear_error(name: str) -> None:
    """Nothing else than a name of ours comes out."""
    try:
        sampler, schedule = sampler_of(name)
    except UnknownSampler:
        pass
    else:
        assert sampler in (None, *ABILITIES.samplers)
        assert schedule in (None, *ABILITIES.schedules)
    with contextlib.suppress(UnknownSampler):
        assert schedule_of(name) in (None, *ABILITIES.schedules)


@pytest.mark.parametrize(
    ("prompt", "left", "loras"),
    [
        ("a cat <lora:ink:0.8>", "a cat ", {"ink": 0.8}),
        ("<lora:ink> a cat", " a cat", {"ink": 1.0}),
        ("<lora:ink:.5><lora:old-film:-1>x", "x", {"ink": 0.5, "old-film": -1.0}),
        ("<lora:ink:0.5> and <lora:ink:0.25>", " and ", {"ink": 0.75}),
        ("<lora:other:1>", "<lora:other:1>", {}),
        ("<lora:../ink:1>", "<lora:../ink:1>", {}),
        ("<lora:ink:nan>", "<lora:ink:nan>", {}),
        ("<lora:ink:1e9>", "<lora:ink:1e9>", {}),
        ("<lora:ink:99>", "<lora:ink:99>", {}),
        ("<lora:ink:>", "<lora:ink:>", {}),
        ("<lora:ink:0.6:0.8><lyco:old-film:0.5>", "", {"ink": 0.8, "old-film": 0.5}),
        ("<lora:ink:te=0.2:unet=0.4><lyco:a:b:1:2>", "", {"ink": 0.4, "a:b": 2.0}),
        ("<lora:people/anna:0.5><lora:anna:0.25>", "", {"people/anna": 0.75}),
        ("<lora:x/twice:1><lora:twice:1>", "<lora:twice:1>", {"x/twice": 1.0}),
        ("<lora:ink:1:2:3:4:5>", "<lora:ink:1:2:3:4:5>", {}),
        ("<lora:ink:0,8>", "<lora:ink:0,8>", {}),
        ("<lora:_[style] 日本語:0.5>", "", {"_[style] 日本語": 0.5}),
        ("<lora:a:b><lora:a:b:0.5><lora: ink :1>", "", {"a:b": 1.5, "ink": 1.0}),
    ],
)
def test_lora_tags(prompt: str, left: str, loras: dict[str, float]) -> None:
    """Known bare names with a plain weight are taken; all else is left to the cleaner of prompts."""
    text, found = take_loras(prompt, LORAS)
    assert text == left
    assert {item["name"]: item["scale"] for item in found} == loras


@given(st.text(alphabet="<>lora:ink.0123456789-e /", max_size=60))
def test_only_known_loras_with_finite_weights_are_taken(prompt: str) -> None:
    """Whatever the text, the field `lora` is one that the request parser takes."""
    text, found = take_loras(prompt, LORAS)
    assert len(text) <= len(prompt)
    assert all(item["name"] in LORAS for item in found)
    assert len(parse_request({"prompt": "x", "lora": found})[0].lora) == len(found)


# -- keys ---------------------------------------------------------------------------------------------


def test_a_full_request_of_a_real_client() -> None:
    """What webuiapi sends by default asks for nothing that gives a warning."""
    result = told(
        enable_hr=False, hr_scale=2, hr_upscaler="Latent", hr_second_pass_steps=0, hr_resize_x=0,
        hr_resize_y=0, hr_checkpoint_name=None, hr_sampler_name=None, hr_scheduler=None, hr_prompt="",
        hr_negative_prompt="", denoising_strength=0.7, firstphase_width=0, firstphase_height=0, styles=[],
        seed=-1, subseed=-1,
        subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0, batch_size=2, n_iter=3, steps=20,
        cfg_scale=7.0, width=512, height=256, restore_faces=False, tiling=False, do_not_save_samples=False,
        do_not_save_grid=False, negative_prompt="dull", eta=1.0, s_churn=0, s_tmax=0, s_tmin=0, s_noise=1,
        override_settings={}, override_settings_restore_afterwards=True, sampler_name="Euler a",
        scheduler="automatic", sampler_index="Euler a", script_name=None, script_args=[], send_images=True,
        save_images=False, alwayson_scripts={},
    )  # fmt: skip
    assert result.fields == {
        "prompt": "a cat", "negative_prompt": "dull", "n": 6, "seed": -1, "steps": 20, "cfg_scale": 7.0,
        "eta": 1.0, "width": 512, "height": 256, "sampler": "euler_a",
    }  # fmt: skip
    assert (result.operation, result.warnings) == ("generation", [])
    assert parse_request(result.fields)[1] == []


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        ({"distilled_cfg_scale": 3.5}, {"distilled_cfg_scale": 3.5}),
        ({"subseed": 9, "subseed_strength": 0.5}, {"subseed": 9, "subseed_strength": 0.5}),
        ({"sampler_index": "Heun"}, {"sampler": "heun"}),
        ({"sampler_name": "DDIM", "sampler_index": "Heun"}, {"sampler": "ddim_trailing"}),
        ({"sampler_index": 3}, {}),
        (
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "Simple"},
            {"sampler": "dpm++2m", "schedule": "karras"},
        ),
        ({"scheduler": "Simple"}, {"schedule": "simple"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"clip_skip": 3}, {"clip_skip": 3}),
        ({"clip_skip": -1}, {}),
        ({"override_settings": {"samples_format": "JPG"}}, {"output_format": "jpeg"}),
        ({"lora": [{"path": "ink", "multiplier": 0.5}]}, {"lora": [{"name": "ink", "scale": 0.5}]}),
        ({"prompt": "a cat<lora:ink:0.5>"}, {"lora": [{"name": "ink", "scale": 0.5}]}),
        ({"denoising_strength": 0.3}, {}),
        ({"seed": None, "width": None, "mask": "", "an_unknown_key": 1}, {"seed": None, "width": None}),
    ],
)
def test_single_keys(data: dict[str, Any], fields: dict[str, Any]) -> None:
    """What each key becomes beside the prompt and the number of pictures."""
    assert told(**data).fields == {"prompt": "a cat", "n": 1, **fields}


@pytest.mark.parametrize(
    ("data", "hires"),
    [
        ({}, {"scale": 2.0, "denoising_strength": 0.75, "upscaler": "Latent"}),
        (
            {"hr_scale": 1.5, "hr_second_pass_steps": 7, "denoising_strength": 0.4, "hr_upscaler": "Lanczos"},
            {"scale": 1.5, "denoising_strength": 0.4, "steps": 7, "upscaler": "Lanczos"},
        ),
        (
            {"hr_resize_x": 768, "hr_resize_y": 512},
            {"width": 768, "height": 512, "denoising_strength": 0.75, "upscaler": "Latent"},
        ),
        (
            {"hr_resize_x": 768, "width": 256, "height": 128, "hr_upscaler": "None"},
            {"width": 768, "height": 384, "denoising_strength": 0.75, "upscaler": "lanczos"},
        ),
        (
            {"hr_resize_y": 256, "width": 256, "height": 128, "hr_upscaler": ""},
            {"width": 512, "height": 256, "denoising_strength": 0.75, "upscaler": "Latent"},
        ),
    ],
)
def test_hires(data: dict[str, Any], hires: dict[str, Any]) -> None:
    """A size goes before the scale, and one side alone keeps the aspect."""
    result = told(enable_hr=True, **data)
    assert result.fields["hires"] == hires
    assert "strength" not in result.fields
    parse_request(result.fields)


def test_image_to_image() -> None:
    """Only there is `denoising_strength` the strength, and hires is not known."""
    result = told(img2img=True, denoising_strength=0.3, enable_hr=True)
    assert (result.operation, result.fields["strength"]) == ("edit", 0.3)
    assert "hires" not in result.fields
    assert told(img2img=True, prompt=" ").operation == "variation"


def test_references_make_an_edit() -> None:
    """`extra_images` of sd.cpp's server are pictures to draw from."""
    assert told(extra_images=[data_url(png(noise()))]).operation == "edit"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"restore_faces": True}, "'restore_faces'"),
        ({"enable_hr": True, "hr_prompt": "more"}, "'hr_prompt'"),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, "'ADetailer'"),
        ({"scheduler": "Beta"}, "Smoothstep"),
    ],
)
def test_what_has_no_effect_is_said(data: dict[str, Any], words: str) -> None:
    """One warning for each thing that was asked for and is not done."""
    (warning,) = told(**data).warnings
    assert words in warning


def test_what_counts_on_masks() -> None:
    """Only where there is a mask; what is not said leaves the border hard and the original under the mask."""
    mask = data_url(png(noise()))
    keys = {"mask_blur": 4, "inpaint_full_res": True, "inpaint_full_res_padding": 8, "inpainting_fill": 0}
    fields = told(img2img=True, mask=mask, **keys).fields
    names = ("mask_blur", "only_masked", "only_masked_padding", "mask_fill")
    assert [fields[name] for name in names] == [4, True, 8, "fill"]
    assert not told(img2img=True, **keys).fields.keys() & set(names)
    fields = told(img2img=True, mask=mask).fields
    assert [fields[name] for name in names] == [0, False, 0, "original"]
    (warning,) = told(img2img=True, mask=mask, inpainting_fill=2).warnings
    assert "takes no latents" in warning


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": "many"}, "batch_size"),
        ({"n_iter": -1}, "n_iter"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"sampler_name": "Nothing"}, "sampler_name"),
        ({"scheduler": ["Karras"]}, "scheduler"),
        ({"hr_scale": float("nan")}, "hr_scale"),
        ({"override_settings": [1]}, "override_settings"),
        ({"lora": "ink"}, "lora"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"init_images": ["!!!"]}, "init_images"),
        ({"init_images": ["http://example.com/a.png"]}, "init_images"),
        ({"resize_mode": 4}, "resize_mode"),
    ],
)
def test_wrong_values_are_refused(data: dict[str, Any], param: str) -> None:
    """The error names the key that the client sent."""
    with pytest.raises(InvalidRequest) as caught:
        told(img2img=True, **data)
    assert caught.value.param == param


def test_a_script_is_named() -> None:
    """A script that would have changed everything is not left out in silence."""
    with pytest.raises(UnsupportedOperation, match="X/Y/Z plot"):
        told(script_name="X/Y/Z plot")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(a1111.A1111Request.model_fields)), JSON), st.booleans())
def test_any_json_is_a_request_or_a_clear_error(data: dict[str, Any], img2img: bool) -> None:
    """Nothing but our own errors comes out, whatever a client puts under our keys."""
    with contextlib.suppress(ImagegenError):
        parse_request(translate(data, img2img=img2img, loras=LORAS).fields)


# -- pictures -----------------------------------------------------------------------------------------


def prepared(**data: Any) -> dict[str, Any]:
    wanted = told(img2img=True, **data).wanted
    return input_images(wanted, img2img=True, max_pixels=1_000_000)


def test_an_image_that_fits_stays_as_it_is() -> None:
    """The very bytes, if neither size nor transparency asks for a change."""
    data = png(noise(128, 64))
    for size in ({}, {"width": 256, "height": 128}, {"width": 99, "height": 99, "resize_mode": 1}):
        assert prepared(init_images=[data_url(data)], **size) == {"image": [data]}


def test_just_resize_stretches() -> None:
    """`resize_mode` 0, the default, keeps all of the picture and not its aspect; the mask goes with it."""
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 64, 64))
    fields = prepared(
        init_images=[data_url(png(noise(128, 64)))], mask=data_url(png(mask)), width=96, height=96
    )
    assert picture(fields["image"][0]).size == (96, 96)
    stretched = picture(fields["mask"]).convert("L")
    assert [stretched.getpixel((x, 48)) for x in (0, 46, 49, 95)] == [255, 255, 0, 0]


def test_transparency_becomes_white() -> None:
    """An image's own transparency is no mask in this dialect."""
    image = noise(64, 64).convert("RGBA")
    image.putalpha(0)
    (data,) = prepared(init_images=[data_url(png(image))])["image"]
    assert picture(data).mode == "RGB"
    assert picture(data).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("invert", [0, 1])
def test_masks(transparent: bool, invert: int) -> None:
    """White, or opaque in a mask with transparency, is repainted; the flag turns it round."""
    grey = Image.new("L", (64, 64))
    grey.paste(255, (0, 0, 32, 64))
    mask = grey
    if transparent:
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        mask.putalpha(grey)
    fields = prepared(
        init_images=[data_url(png(noise(64, 64)))], mask=data_url(png(mask)), inpainting_mask_invert=invert
    )
    repaint = masks.mask_from(picture(fields["mask"]), noise(64, 64), (64, 64))
    assert repaint is not None
    assert [repaint.data[0], repaint.data[63]] == ([0, 255] if invert else [255, 0])


def test_pictures_have_their_limits() -> None:
    """What is too large or no picture is refused before it is worked on."""
    with pytest.raises(InvalidImage, match="pixels allowed"):
        prepared(init_images=[data_url(png(Image.new("L", (2000, 1000))))])
    with pytest.raises(InvalidImage, match="not a PNG"):
        prepared(init_images=["aGVsbG8="])
    data = png(noise(64, 32))
    assert prepared(init_images=[data_url(data)], width=10**6, height=10**6) == {"image": [data]}
