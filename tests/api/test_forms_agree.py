"""A form and a JSON body that say the same are the same request: all fields, by all their names."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_imagegen.api.dialects.kwargs import with_kwargs
from gguf_imagegen.api.openapi.schemas import names_of
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning.engine_fields import StepCacheOptions
from gguf_imagegen.planning.form import from_form
from gguf_imagegen.planning.request import (
    NULL_ENCODER,
    HiresRequest,
    ImageRequest,
    LoraRequest,
    StreamOptions,
    parse_request,
)
from gguf_imagegen.planning.without_effect import WITHOUT_EFFECT

Draw = Callable[[st.SearchStrategy[Any]], Any]
Parts = list[tuple[str, str | bytes]]
UPLOADS = ("image", "mask", "control")
NAMES = {"sampler": ABILITIES.samplers, "schedule": ABILITIES.schedules}
OBJECTS = {"lora": LoraRequest, "hires": HiresRequest, "stream_options": StreamOptions}
SIGMAS = st.lists(st.floats(0, 100), min_size=2, max_size=5, unique=True)
TEXT = st.text(min_size=1, max_size=20)
"""An empty part is a field not said, but for prompts."""


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What pydantic's schema of a plain field allows, without null."""
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"] if each.get("type") != "null"])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    match kinds[0]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(low, high if high is not None else 1 << 20)
        case "number":
            low = schema.get("exclusiveMinimum", low)
            exclusive = "exclusiveMinimum" in schema
            return st.floats(low, high, exclude_min=exclusive, allow_nan=False, allow_infinity=False)
        case "array":
            return st.lists(values(schema["items"]), max_size=4)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(min_size=1, max_size=schema.get("maxLength", 40))
    raise AssertionError(schema)


def objects(model: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of some or all of a model's fields, each by one of its names."""
    properties = model.model_json_schema()["properties"]

    @st.composite
    def made(draw: Draw) -> dict[str, Any]:
        given = {}
        for field, info in model.model_fields.items():
            if info.is_required() or draw(st.booleans()):
                name = draw(st.sampled_from(names_of(model, field)))
                given[name] = draw(values(properties[names_of(model, field)[0]]))
        return given

    return made()


SCHEMAS = ImageRequest.model_json_schema()["properties"]
BYTES = st.binary(min_size=1, max_size=40)


def text_of(value: Any) -> str:
    """A plain value as a form says it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def upload(draw: Draw, name: str, *, several: bool) -> tuple[Any, Parts]:
    """Pictures as base64 or data URLs, and as files; lists by any name that a form has for them."""
    files = draw(st.lists(BYTES, min_size=1, max_size=3 if several else 1))
    texts = [base64.b64encode(data).decode() for data in files]
    if draw(st.booleans()):
        texts = [f"data:image/png;base64,{text}" for text in texts]
    if not several:
        return texts[0], [(name, files[0])]
    bare = name.removesuffix("[]")
    names = draw(st.sampled_from([[bare] * 3, [f"{bare}[]"] * 3, [f"{bare}[{index}]" for index in range(3)]]))
    alone = len(texts) == 1 and draw(st.booleans())
    return texts[0] if alone else texts, list(zip(names, files, strict=False))


def structured(draw: Draw, field: str, name: str) -> tuple[Any, Parts]:
    """Objects, as JSON text or by brackets."""
    if field == "hires":
        value: Any = draw(objects(HiresRequest))
        return value, [(name, json.dumps(value))]
    if field == "stream_options":
        value = draw(objects(StreamOptions))
        shapes = ["{}[{}]", "{}_{}"] if value else []
        shape = draw(st.sampled_from([None, *shapes]))
        if shape is None:
            return value, [(name, json.dumps(value))]
        return value, [(shape.format(name, key), text_of(part)) for key, part in value.items()]
    value = draw(st.lists(objects(LoraRequest), max_size=3))
    shape = draw(st.sampled_from([None, *(["lora[{}][{}]"] if value else [])]))
    if shape is None:
        return value, [(name, json.dumps(value))]
    numbered = enumerate(value)
    return value, [
        (shape.format(at, key), text_of(part)) for at, each in numbered for key, part in each.items()
    ]


@st.composite
def twins(draw: Draw) -> tuple[dict[str, Any], Parts]:
    """One request as JSON and as the parts of a form."""
    body: dict[str, Any] = {}
    parts: Parts = []
    for field in ImageRequest.model_fields:
        if not draw(st.booleans()):
            continue
        name = draw(st.sampled_from(names_of(ImageRequest, field)))
        if draw(st.integers(0, 9)) == 0 and name != NULL_ENCODER:
            body[name] = None  # what a form leaves out
            continue
        if field in UPLOADS:
            body[name], more = upload(draw, name, several=field == "image")
        elif field in OBJECTS:
            body[name], more = structured(draw, field, name)
        elif field == "lora_alphas":
            body[name] = draw(st.dictionaries(TEXT, st.floats(-10, 10), max_size=4))
            more = [(name, json.dumps(body[name]))]
        elif field == "step_cache_options":
            body[name] = draw(objects(StepCacheOptions))
            more = [(name, json.dumps(body[name]))]
        elif field == "custom_sigmas":
            body[name] = sorted(draw(SIGMAS), reverse=True)
            more = [(name, text_of(body[name]))]
        else:
            named = st.sampled_from(NAMES[field]) if field in NAMES else values(SCHEMAS[field])
            body[name] = draw(named)
            more = [(name, text_of(body[name]))]
        parts += more
    for name in draw(st.sets(st.sampled_from([*sorted(WITHOUT_EFFECT), "nobody_knows"]), max_size=3)):
        body[name] = draw(TEXT)
        parts.append((name, body[name]))
    if draw(st.booleans()):
        body["kwargs"] = draw(objects(HiresRequest))
        parts.append(("kwargs", json.dumps(body["kwargs"])))
    return body, parts


@given(twins())
@settings(max_examples=300)
def test_a_form_says_what_json_says(pair: tuple[dict[str, Any], Parts]) -> None:
    body, parts = pair
    from_json, json_warnings = parse_request(with_kwargs(body))
    from_parts, form_warnings = parse_request(with_kwargs(from_form(parts)))
    assert from_parts.model_dump() == from_json.model_dump()
    assert set(form_warnings) == set(json_warnings)


def test_each_name_of_each_field_says_the_same() -> None:
    """Without chance: every alias alone, in both, is the canonical field."""
    samples: dict[str, Any] = {
        "size": "64x64",
        "image": [base64.b64encode(b"x").decode()],
        "hires": {"scale": 2},
    }
    for field in ImageRequest.model_fields:
        value = samples.get(field) or _sample(field)
        wanted = parse_request({field: value})[0]
        assert getattr(wanted, field) != ImageRequest.model_fields[field].get_default(
            call_default_factory=True
        )
        for name in names_of(ImageRequest, field):
            assert parse_request({name: value}) == (wanted, [])
            told = value[0] if field == "image" else value
            part = json.dumps(told) if isinstance(told, dict | list) else text_of(told)
            assert parse_request(from_form([(name, part)])) == (wanted, [])


def _sample(field: str) -> Any:
    """A value that is not the default."""
    special = {
        "mask": "eA==", "control": "eA==", "lora": [{"name": "x"}], "stream_options": {"preview": True},
        "sampler": "heun", "schedule": "karras", "lora_alphas": {"x": 0.5},
        "custom_sigmas": [1.0, 0.0], "step_cache_options": {"max_warmup_steps": 2}, "vae_tile_size": 32,
        "upscale_tile_size": 64,
        "slg_skip_layers": [3], "seed": 3, "variation_seed": 3, "keep_alive": 3, "on_disconnect": "continue",
    }  # fmt: skip
    if field in special:
        return special[field]
    schema = SCHEMAS[names_of(ImageRequest, field)[0]]
    plain = next(each for each in schema.get("anyOf", [schema]) if each.get("type") != "null")
    if "enum" in plain:
        return plain["enum"][-1]
    return (
        {"string": "words", "integer": 1, "number": 1.5, "boolean": True}[plain["type"]]
        if not (plain["type"] == "number" and plain.get("maximum", 2) <= 1)
        else 0.5
    )
