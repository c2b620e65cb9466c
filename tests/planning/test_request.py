"""Requests at the door: every name a field goes by, forms, wrong values, and nothing but our own errors."""

from __future__ import annotations

import base64
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices

from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning.form import from_form
from gguf_imagegen.planning.request import (
    MAX_SEED,
    NULL_ENCODER,
    HiresRequest,
    ImageRequest,
    parse_request,
)
from gguf_imagegen.vocabulary.errors import (
    ImagegenError,
    InvalidImage,
    InvalidRequest,
    InvalidSize,
    UnknownSampler,
)

PIXEL = b"any bytes"
PIXEL_64 = base64.b64encode(PIXEL).decode()

ALIASES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "negative_prompt": ("fog", "fog", ("negative_sampler",)),
    "n": (3, 3, ("batch_count", "num_images_per_prompt", "num_outputs_per_prompt")),
    "sampler": (
        "Heun", "heun", ("sample_method", "sampler_name", "sampling_method", "sampler_index"),
    ),
    "schedule": ("karras", "karras", ("schedule_method", "scheduler")),
    "steps": (7, 7, ("sample_steps", "sampling_steps", "num_inference_steps", "step")),
    "cfg_scale": (2.5, 2.5, ("true_cfg_scale", "txt_cfg")),
    "guidance": (4, 4.0, ("distilled_guidance", "distilled_cfg_scale")),
    "image_cfg_scale": (1.5, 1.5, ("img_cfg",)),
    "step_cache": ("disabled", "none", ("cache_mode",)),
    "seamless": (True, "xy", ("tiling",)),
    "strength": (0.4, 0.4, ("denoising_strength",)),
    "seed": (42, 42, ("rng_seed",)),
    "variation_seed": (42, 42, ("subseed",)),
    "variation_strength": (0.2, 0.2, ("subseed_strength",)),
    "image": (PIXEL_64, (PIXEL,), ("image[]", "images", "init_images", "url")),
    "t5xxl": ("none", "none", ("text_encoder_3",)),
    "lora_alphas": ({"x": 0.5}, {"x": 0.5}, ("lora_weights",)),
    "mask": (PIXEL_64, PIXEL, ("mask_image",)),
    "control": (PIXEL_64, PIXEL, ("control_image",)),
    "control_model": ("edges", "edges", ("control_net",)),
}  # fmt: skip


def parsed(**fields: Any) -> ImageRequest:
    return parse_request(fields)[0]


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(fields)
    return caught.value


@pytest.mark.parametrize(
    ("field", "name"),
    [(field, name) for field, (_, _, names) in ALIASES.items() for name in (field, *names)],
)
def test_each_name_fills_its_field(field: str, name: str) -> None:
    """Every documented alias means its canonical field, alone and without a warning."""
    given_value, expected, _ = ALIASES[field]
    request, warnings = parse_request({name: given_value})
    assert getattr(request, field) == expected
    assert warnings == []
    assert request.model_fields_set == {field}


def test_the_table_of_aliases_is_whole() -> None:
    """No alias exists in the code that the table above does not test."""
    coded = {
        key: set(field.validation_alias.choices) - {key}
        for key, field in ImageRequest.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
    }
    assert coded == {field: set(names) for field, (_, _, names) in ALIASES.items()}


@pytest.mark.parametrize("name", ["name", "id"])
@pytest.mark.parametrize("scale", ["scale", "weight", "multiplier"])
def test_loras_have_aliases_too(name: str, scale: str) -> None:
    """A LoRA is named and weighed in any dialect's words; a single object is a list of one."""
    lora = {name: "ink", scale: 0.5}
    for given_value in ([lora], lora):
        (found,) = parsed(lora=given_value).lora
        assert (found.name, found.scale) == ("ink", 0.5)


@pytest.mark.parametrize(
    ("value", "size"),
    [("512x256", (512, 256)), ("512*256", (512, 256)), (" 64 X 65 ", (64, 65)), ("64×65", (64, 65)),
     ("auto", None), (None, None)],
)  # fmt: skip
def test_sizes(value: str | None, size: tuple[int, int] | None) -> None:
    """WxH with any usual sign between; auto means "not said"."""
    assert parsed(size=value).size == size


@pytest.mark.parametrize("value", [None, -1, "-1", "", "null"])
def test_a_random_seed_is_no_seed(value: object) -> None:
    """All ways to ask for a random seed become None, for the plan to choose one."""
    assert parsed(seed=value).seed is None


@pytest.mark.parametrize(
    "value",
    [PIXEL_64, f"data:image/png;base64,{PIXEL_64}", PIXEL, {"image_url": f"data:;base64,{PIXEL_64}"},
     {"image_url": {"url": PIXEL_64}}, {"b64_json": PIXEL_64}],
)  # fmt: skip
@pytest.mark.parametrize("field", ["image", "mask", "control"])
def test_uploads(field: str, value: object) -> None:
    """Uploaded bytes, data URLs, base64 and OpenAI's objects are the same bytes."""
    found = getattr(parsed(**{field: value}), field)
    assert (found[0] if field == "image" else found) == PIXEL


EVERY_NAME = sorted({*ImageRequest.model_fields, *(name for v in ALIASES.values() for name in v[2])})


@pytest.mark.parametrize("nothing", [None, "", [], {}], ids=repr)
@pytest.mark.parametrize("name", EVERY_NAME)
def test_nothing_is_not_something(name: str, nothing: Any) -> None:
    """What is empty is not said, in whatever field, by whatever name, in JSON and in a form."""
    if not (name == "text_encoder_3" and nothing is None):  # which is a wish
        assert parse_request({name: nothing}) == (ImageRequest(), [])
    if nothing == "":
        assert parse_request(from_form([(name, "")])) == (ImageRequest(), [])


@pytest.mark.parametrize("zero", [0, 0.0, "0"], ids=repr)
def test_zero_of_how_many_is_not_said(zero: Any) -> None:
    """0 pictures, steps or pixels ask for the default; a second pass of at most the same size for none."""
    for name in ("n", "batch_count", "steps", "num_inference_steps", "width", "height"):
        assert parse_request({name: zero}) == (ImageRequest(), [])
    assert parsed(size="0x0") == ImageRequest(size=None)
    assert parsed(size="512x0").size == (512, 512)
    for scale in (0, 0.5, 1):
        assert parsed(hires={"scale": scale}).hires is None
    second = parsed(hires={"steps": 0, "width": 0, "height": None, "upscaler": "", "scale": 2}).hires
    assert second == HiresRequest(scale=2.0)
    assert parsed(image=["", None]).image == ()
    assert parsed(cfg_scale=0, strength=0, seed=0).model_fields_set == {"cfg_scale", "strength", "seed"}


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("euler_ancestral", "euler_a"),
        ("dpmpp_sde", "dpm++2s_a"),
        ("DPM++ 2M SDE", "dpm++2m"),
        ("dpmpp_2m_sde_gpu", "dpm++2m"),
        ("dpmpp_3m_sde", "dpm++2m"),
        ("uni_pc", "dpm++2m"),
        ("PLMS", "ipndm"),
        ("lms", "ipndm"),
        ("Restart", "heun"),
    ],
)
def test_samplers_of_other_programs(name: str, sampler: str) -> None:
    """A1111's and ComfyUI's: the nearest one draws, never in silence."""
    request, warnings = parse_request({"sampler": name})
    assert request.sampler == sampler
    assert warnings == [f"sampler: {name!r} is not known here; {sampler!r}, the nearest to it, was used"]


def test_another_spelling_is_the_same_sampler() -> None:
    """Blanks, capitals and k-diffusion's own names; names that mean the model's own are not said."""
    for name, sampler in (("Euler a", "euler_a"), ("dpmpp_2m", "dpm++2m"), ("sample_k_heun", "heun")):
        assert parse_request({"sampler_name": name}) == (ImageRequest(sampler=sampler), [])
    for name in ("Default", "Automatic", "auto"):
        assert parse_request({"sampler": name}) == (
            ImageRequest(),
            [f"sampler: {name!r} means the model's own"],
        )
    assert parse_request({"scheduler": "automatic"})[0].schedule is None
    assert parsed(schedule="default").schedule == "default"


def each(
    kind: type[InvalidRequest], name: str, *values: Any
) -> list[tuple[type[InvalidRequest], dict[str, Any]]]:
    return [(kind, {name: value}) for value in values]


WRONG: list[tuple[type[InvalidRequest], dict[str, Any]]] = [
    (UnknownSampler, {"sampler": "best"}),
    *((UnknownSampler, {name: "nope"}) for name in ALIASES["sampler"][2] + ALIASES["schedule"][2]),
    (UnknownSampler, {"sampler": 5}),
    *each(InvalidSize, "size", "12", "0x", "x5", "-1x5", "1e3x5", 512, [512, 512], True),
    *((InvalidImage, {name: 5}) for name in ("image", "images", "init_images", "mask", "control")),
    *((InvalidImage, {name: "!!"}) for name in ("image", "mask", "control")),
    (InvalidImage, {"mask": {"image_url": None}}),
    (InvalidImage, {"image": [PIXEL_64] * 17}),
    *((InvalidRequest, {name: "https://example.com/a.png"}) for name in ("image", "mask", "control")),
    *each(InvalidRequest, "steps", -1, 2.5, "many", [1], {"a": 1}, False),
    *each(InvalidRequest, "n", -3, "x", 1.5),
    *each(InvalidRequest, "seed", -2, MAX_SEED + 1, 1.5, "x", [1]),
    *each(InvalidRequest, "cfg_scale", -1, 101, "x", [1], {"a": 1}),
    *each(InvalidRequest, "strength", -0.1, 1.1),
    *each(
        InvalidRequest, "custom_sigmas", [1], [1, 1], [1, 2], [1, -1], ["x", 0], [math.inf, 0], [math.nan, 0]
    ),
    *each(InvalidRequest, "seamless", "z", 5, ["x"]),
    *each(InvalidRequest, "shifted_timestep", -1, 1001, "x"),
    *each(InvalidRequest, "prediction", "x0"),
    *each(InvalidRequest, "vae_tile_size", 8, "8x32", "32x", [32], 2000),
    *each(InvalidRequest, "upscale_tile_size", 0, 4096),
    *each(
        InvalidRequest,
        "step_cache_options",
        "x",
        "{}x",
        {"speed": 1},
        {"scm_mask": "1,2"},
        {"scm_mask": "1,"},
        {"Fn_compute_blocks": -1},
        {"spectrum_w": math.nan},
    ),
    *each(InvalidRequest, "output_compression", -1, 101),
    *each(InvalidRequest, "partial_images", -1, 4),
    (InvalidRequest, {"output_format": "gif"}),
    (InvalidRequest, {"response_format": "files"}),
    (InvalidRequest, {"quality": "best"}),
    (InvalidRequest, {"background": "blue"}),
    (InvalidRequest, {"on_disconnect": "explode"}),
    (InvalidRequest, {"prompt": 5}),
    (InvalidRequest, {"prompt": "half \ud800 pair"}),
    (InvalidRequest, {"negative_prompt": "\udfff"}),
    (InvalidRequest, {"model": ["a"]}),
    (InvalidRequest, {"stream": "perhaps"}),
    (InvalidRequest, {"stream_options": "x"}),
    (InvalidRequest, {"stream_options": {"chunk_size": 1}}),
    (InvalidRequest, {"lora": "{"}),
    (InvalidRequest, {"lora": "[" * 100_000}),
    (InvalidRequest, {"lora": [{"scale": 1}]}),
    (InvalidRequest, {"lora": [{"name": "a"}] * 9}),
    (InvalidRequest, {"lora": ["ink"]}),
    (InvalidRequest, {"hires": {"scale": -1}}),
    (InvalidRequest, {"hires": 2}),
    (InvalidRequest, {"slg_skip_layers": [-1]}),
    (InvalidRequest, {"width": -1}),
    (InvalidRequest, {"keep_alive": -2}),
]


@pytest.mark.parametrize(("kind", "fields"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_values(kind: type[InvalidRequest], fields: dict[str, Any]) -> None:
    """A wrong type or range is a 400 of the right code, and `param` names the key that the client sent."""
    error = refused(**fields)
    assert type(error) is kind
    assert error.status == 400
    assert error.param == next(iter(fields))


FLOATS = [
    "cfg_scale", "guidance", "guidance_scale", "image_cfg_scale", "strength", "eta", "flow_shift",
    "slg_scale", "slg_start", "slg_end", "control_strength", "keep_alive", "upscale",
    "step_cache_threshold", "vae_tile_overlap", "variation_strength",
]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "1e999"])
@pytest.mark.parametrize("field", FLOATS)
def test_floats_are_finite(field: str, value: object) -> None:
    """NaN and infinity would draw garbage: no float field takes them, as numbers or as a form's text."""
    assert refused(**{field: value}).param == field


def test_no_float_field_is_forgotten() -> None:
    """The list above has every float of a request; the nested ones are refused in their own right."""
    coded = {name for name, field in ImageRequest.model_fields.items() if "float" in repr(field.annotation)}
    assert coded == {*FLOATS, "lora_alphas", "custom_sigmas"}
    assert refused(lora_alphas={"a": math.nan}).param == "lora_alphas"
    assert refused(lora=[{"name": "a", "scale": math.nan}]).param == "lora"
    assert refused(hires={"denoising_strength": math.inf}).param == "hires"


@pytest.mark.parametrize(
    ("name", "near"), [("eulr_a", "euler_a"), ("euler_aa", "euler_a"), ("dpm+2m", "dpm++2m"), ("hen", "heun")]
)
def test_a_near_miss_is_helped(name: str, near: str) -> None:
    """A misspelt sampler is answered with the nearest one and with the whole list."""
    message = str(refused(sampler=name))
    assert f"did you mean {near!r}" in message
    assert all(sampler in message for sampler in ABILITIES.samplers)


def test_a_wild_name_gets_the_list_only() -> None:
    """No hint is better than a silly one; the valid schedules are listed all the same."""
    message = str(refused(scheduler="zzzz"))
    assert "did you mean" not in message
    assert all(schedule in message for schedule in ABILITIES.schedules)


def test_null_is_not_said() -> None:
    """Clients that send null for all they know ask for nothing, and are warned of nothing."""
    names = {*ImageRequest.model_fields, *(n for v in ALIASES.values() for n in v[2]), "style", "theirs"}
    request, warnings = parse_request(dict.fromkeys(names - {NULL_ENCODER}))
    assert request == ImageRequest()
    assert warnings == []


def test_unknown_keys_warn() -> None:
    """Clients send keys of their own: they are ignored, each with a warning, and break nothing."""
    request, warnings = parse_request({"prompt": "x", "webui_only": 1, "k" * 500: 2})
    assert request.prompt == "x"
    assert len(warnings) == 2
    assert "unknown field 'webui_only' was ignored" in warnings
    assert max(map(len, warnings)) < 150


def test_contradictions_are_told() -> None:
    """Of two fields for one thing the one that is ignored is named, unless both say the same."""
    request, warnings = parse_request(
        {"steps": 2, "num_inference_steps": 13, "size": "128x128", "width": 64, "height": "128"}
    )
    assert (request.steps, request.size) == (2, (128, 128))
    assert warnings == [
        "field 'num_inference_steps' was ignored: 'steps' was given too",
        "field 'width' was ignored: 'size' was given too",
    ]
    assert parse_request({"steps": 2, "num_inference_steps": "2"})[1] == []


def test_single_stream_options_stand_alone() -> None:
    """As llama-box takes them, also beside the object, which goes before."""
    request, warnings = parse_request(
        {
            "stream_options_include_usage": True,
            "stream_options_preview": True,
            "stream_options": {"preview": "tae"},
        }
    )
    assert request.stream_options is not None
    assert (request.stream_options.include_usage, request.stream_options.preview) == (True, "tae")
    assert warnings == []


def test_fields_without_effect_say_so() -> None:
    """What a dialect knows and this engine cannot do warns if it asks for something; `user` never does."""
    _, warnings = parse_request(
        {"style": "vivid", "prompt_2": "more", "input_fidelity": "auto", "prompt_3": None, "user": "me"}
    )
    assert [warning.split(":")[0] for warning in warnings] == ["prompt_2", "style"]


def test_further_prompts_warn_once_and_say_why() -> None:
    """One warning for all of them; one that repeats the first prompt loses nothing."""
    _, warnings = parse_request(
        {
            "prompt": "a",
            "prompt_2": "b",
            "prompt_3": "a",
            "negative_prompt_2": "c",
            "max_sequence_length": 256,
        }
    )
    assert warnings == [
        "max_sequence_length: no effect; the engine always encodes the whole prompt",
        "negative_prompt_2, prompt_2: no effect; the engine gives one prompt to all text encoders of a model",
    ]


def test_a_null_text_encoder_leaves_t5_out() -> None:
    """diffusers' way to say it; any other null is a field not said."""
    assert parsed(text_encoder_3=None).t5xxl == "none"
    assert parsed(t5xxl=None).t5xxl is None


@pytest.mark.parametrize(
    "name", ["image", "image[]", "image[0]", "images", "images[]", "init_images[]", "init_images[1]"]
)
def test_form_images(name: str) -> None:
    """However a form numbers its images, they come in order under one name."""
    data = from_form([("prompt", "x"), (name, b"one"), (name, b"two")])
    assert parsed(**data).image == (b"one", b"two")


@pytest.mark.parametrize(
    "parts",
    [
        [("stream_options", '{"chunk_results": true, "chunk_size": 100}')],
        [("stream_options_chunk_results", "1"), ("stream_options_chunk_size", "100")],
        [("stream_options[chunk_result]", "true"), ("stream_options[chunk_size]", "100")],
    ],
)
def test_form_stream_options(parts: list[tuple[str, str | bytes]]) -> None:
    """JSON, llama-box's underscores and PHP's brackets say the same options."""
    options = parsed(**from_form(parts)).stream_options
    assert options is not None
    assert (options.chunk_results, options.chunk_size) == (True, 100)


@pytest.mark.parametrize(
    "parts",
    [
        [("lora", '[{"id": "a", "weight": 0.5}, {"id": "b"}]')],
        [("lora[][id]", "a"), ("lora[][weight]", "0.5"), ("lora[][id]", "b")],
        [("lora[0][id]", "a"), ("lora[0][weight]", "0.5"), ("lora[1][name]", "b")],
        [("lora[1][id]", "a"), ("lora[1][weight]", "0.5"), ("lora[7][name]", "b")],
        [("lora[0][id]", "a"), ("lora[1][name]", "b"), ("lora[0][weight]", "0.5")],
    ],
)
def test_form_loras(parts: list[tuple[str, str | bytes]]) -> None:
    """LoRAs as JSON text, without numbers, or numbered from anywhere: two LoRAs, the first at half weight."""
    loras = parsed(**from_form(parts)).lora
    assert [(lora.name, lora.scale) for lora in loras] == [("a", 0.5), ("b", 1.0)]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_form_booleans(text: str, value: bool) -> None:
    """Forms have no booleans, so their usual spellings count."""
    assert parsed(**from_form([("stream", text)])).stream is value


def test_empty_form_parts_are_not_said() -> None:
    """Browsers send every input of a form: an empty one leaves its field alone."""
    data = from_form([("prompt", ""), ("steps", ""), ("size", ""), ("slg_skip_layers", "[7, 8]")])
    request, warnings = parse_request(data)
    assert request.model_fields_set == {"slg_skip_layers"}
    assert request.slg_skip_layers == (7, 8)
    assert warnings == []


@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 100_000])
@pytest.mark.parametrize("name", ["stream_options", "hires"])
def test_form_objects_must_be_objects(name: str, text: str) -> None:
    """JSON in a form part that is no object, or too deep, is a 400 that names the part."""
    with pytest.raises(InvalidRequest) as caught:
        from_form([(name, text)])
    assert caught.value.param == name


KEYS = st.sampled_from([*ImageRequest.model_fields, *(n for v in ALIASES.values() for n in v[2]), "other"])
ANY_TEXT = st.text(st.characters(), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["auto", "512x512", "euler", "png", PIXEL_64]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            ANY_TEXT | st.sampled_from(["name", "scale", "url", "image_url", "preview"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(KEYS | ANY_TEXT, JSON, max_size=8))
def test_any_object_is_parsed_or_refused(data: dict[str, Any]) -> None:
    """No JSON object makes anything but a request or an InvalidRequest whose words can be sent as UTF-8."""
    try:
        request, warnings = parse_request(data)
        words = [request.prompt, request.negative_prompt, *warnings]
    except InvalidRequest as exc:
        words = [str(exc.body())]
    assert "".join(words).encode() or not any(words)


@given(
    st.lists(
        st.tuples(
            KEYS | st.from_regex(r"(lora|image|stream_options)(\[\w{0,3}\]){0,2}", fullmatch=True) | ANY_TEXT,
            st.text(max_size=20) | st.binary(max_size=20),
        ),
        max_size=10,
    )
)
def test_any_form_is_parsed_or_refused(parts: list[tuple[str, str | bytes]]) -> None:
    """Nor does any list of form parts."""
    outcome: object
    try:
        outcome, _ = parse_request(from_form(parts))
    except ImagegenError as exc:
        outcome = exc
    assert isinstance(outcome, ImageRequest | InvalidRequest)
