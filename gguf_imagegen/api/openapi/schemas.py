"""JSON schemas of what requests may hold and answers do, from the pydantic models.

pydantic's own schemas lack three things that clients need: every alias as a property, uploads as the text
that they are in JSON, and the limits of this server. Pure functions.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.planning.without_effect import WITHOUT_EFFECT
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities

Schema = dict[str, Any]
REF = "#/components/schemas/{model}"
UPLOAD: Schema = {"type": "string", "format": "binary"}
"""What pydantic says of bytes; in a form it is right."""
UPLOAD_TEXT: Schema = {"type": "string", "contentEncoding": "base64", "description": "base64 or a data URL"}
NO_EFFECT = "accepted without effect"


def name_of(model: type[BaseModel]) -> str:
    return model.__name__


def ref(name: str) -> Schema:
    return {"$ref": REF.format(model=name)}


def component_schemas(
    requests: Iterable[type[BaseModel]],
    answers: Iterable[type[BaseModel]],
    forms: Iterable[type[BaseModel]],
    settings: Settings,
    able: Abilities,
    describe: Iterable[Callable[[dict[str, Schema]], None]],
) -> dict[str, Schema]:
    """All components by name: the models and what they hold, and `…Form` of the requests that are forms too.

    `describe` are the dialects' own completions.
    """
    wanted: list[type[BaseModel]] = sorted({ImageRequest, *requests}, key=name_of)
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(each, "validation") for each in wanted]
    modes += [(each, "serialization") for each in sorted(answers, key=name_of)]
    _, found = models_json_schema(modes, ref_template=REF)
    schemas = {name: plain(schema) for name, schema in found["$defs"].items()}
    for name, model in _models(wanted).items():
        if name in schemas:
            schemas[name] = _with_aliases(model, schemas[name])
    _complete(schemas, settings, able)
    for complete in describe:
        complete(schemas)
    for name in sorted(map(name_of, forms)):
        schemas[form_name(name)] = form_of(schemas[name], schemas)
    return {name: _in_json(schema) for name, schema in schemas.items() if not name.endswith("Form")} | {
        name: schema for name, schema in schemas.items() if name.endswith("Form")
    }


def _complete(schemas: dict[str, Schema], settings: Settings, able: Abilities) -> None:
    """What the parser of image requests reads beside the model."""
    image = schemas["ImageRequest"]["properties"]
    image |= without_effect(WITHOUT_EFFECT.keys() - image.keys())
    image["control"]["anyOf"].append(CONTROL)
    _name(image, able)
    _limit(image, settings)
    _limit(schemas["HiresRequest"]["properties"], settings)


JSON_OBJECT: Schema = {
    "anyOf": [{"type": "object"}, {"type": "string", "contentMediaType": "application/json"}],
}
"""As such or as text."""
CONTROL: Schema = {
    "type": "object",
    "description": "a ControlNet with its image; `control_model` and the like are the same as single fields",
    "properties": {
        "image": {"type": "string"},
        "model": {"type": "string"},
        "strength": {"type": "number", "minimum": 0, "maximum": 2},
        "preprocess": {"enum": ["none", "canny"]},
    },
}


def without_effect(names: Iterable[str]) -> dict[str, Schema]:
    return {name: {"description": NO_EFFECT} for name in sorted(names)}


def uploads(properties: Mapping[str, Schema]) -> set[str]:
    """The fields that may hold a file."""
    return {name for name, schema in properties.items() if UPLOAD in every_part(schema)}


def _name(properties: dict[str, Schema], able: Abilities) -> None:
    """The engine's names, on the fields that take them and their aliases."""
    for field, words in {"sampler": able.samplers, "schedule": able.schedules}.items():
        for name in names_of_property(field, properties):
            for part in every_part(properties[name]):
                if part.get("type") == "string":
                    part["enum"] = list(words)


def _limit(properties: dict[str, Schema], settings: Settings) -> None:
    """Bounds that flags of this server set, on the fields that are there and their aliases."""
    bounds = {
        "n": ("maximum", settings.max_images),
        "steps": ("maximum", settings.max_steps),
        "width": ("maximum", settings.max_side),
        "height": ("maximum", settings.max_side),
        "prompt": ("maxLength", settings.max_prompt_chars),
        "negative_prompt": ("maxLength", settings.max_prompt_chars),
    }
    for field, (key, value) in bounds.items():
        kind = "string" if key == "maxLength" else "integer"
        names = names_of_property(field, properties) if field in properties else ()
        parts = (part for name in names for part in every_part(properties[name]))
        for part in parts:
            if part.get("type") == kind:
                part[key] = value


# -- pydantic's schemas made plain --------------------------------------------------------------------


def plain(schema: Any) -> Any:
    """Without titles and null defaults; pydantic's `maxLength` of arrays is `maxItems`, said once."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: plain(part) for name, part in value.items()} if key == "properties" else plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    if made.get("type") == "array" and "maxLength" in made:
        made["maxItems"] = made.pop("maxLength")
    if "anyOf" in made:
        made.pop("maxLength", None)
    return made


def _in_json(schema: Any) -> Any:
    """Uploads as text."""
    if isinstance(schema, list):
        return [_in_json(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if UPLOAD.items() <= schema.items():
        return {**UPLOAD_TEXT, **{key: value for key, value in schema.items() if key != "format"}}
    return {key: _in_json(value) for key, value in schema.items()}


def every_part(schema: Any) -> Iterator[Schema]:
    """The schema and all alternatives and items in it."""
    yield schema
    for part in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]:
        yield from every_part(part)


# -- aliases ------------------------------------------------------------------------------------------


def names_of(model: type[BaseModel], field: str) -> list[str]:
    """The canonical name first."""
    info = model.model_fields[field]
    choices = info.validation_alias.choices if isinstance(info.validation_alias, AliasChoices) else []
    return list(dict.fromkeys([field, *(each for each in choices if isinstance(each, str))]))


def _with_aliases(model: type[BaseModel], schema: Schema) -> Schema:
    """Every alias right after its field, with the same schema; a field is there when one of them is."""
    known, made = schema.get("properties", {}), dict[str, Schema]()
    needed = schema.get("required", ())
    for field, info in model.model_fields.items():
        name = info.alias or field
        made[name] = known[name]
        for alias in names_of(model, field)[1:]:
            rest = {key: value for key, value in copy.deepcopy(known[name]).items() if key != "default"}
            made[alias] = {**rest, "description": f"the same as `{field}`", "x-alias-of": field}
    several = [names for name in needed if len(names := names_of_property(name, made)) > 1]
    rest = {key: value for key, value in schema.items() if key != "required"}
    single = [name for name in needed if len(names_of_property(name, made)) == 1]
    return {
        **rest,
        "properties": made,
        **({"required": single} if single else {}),
        **({"allOf": [any_of(names) for names in several]} if several else {}),
    }


def names_of_property(name: str, properties: Mapping[str, Schema]) -> list[str]:
    """The property and its aliases."""
    return [name, *(other for other, schema in properties.items() if schema.get("x-alias-of") == name)]


def any_of(names: Iterable[str]) -> Schema:
    return {"anyOf": [{"required": [name]} for name in names]}


def _models(roots: Iterable[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """The models and all that their fields hold, by name."""
    found: dict[str, type[BaseModel]] = {}

    def look(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__name__ not in found:
            found[kind.__name__] = kind
            for info in kind.model_fields.values():
                look(info.annotation)
        for part in typing.get_args(kind):
            look(part)

    for root in roots:
        look(root)
    return found


# -- forms --------------------------------------------------------------------------------------------


def form_name(model: str) -> str:
    """`ImageForm` of `ImageRequest`."""
    return model.removesuffix("Request") + "Form"


def form_of(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """The same fields as parts of a form: files are bytes, objects and lists of them are JSON text."""
    properties = {name: _part(each, schemas) for name, each in schema["properties"].items()}
    return {**schema, "properties": properties}


def _part(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """Not said is an absent part, so null falls away; a list of numbers is text with commas."""
    said = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    one = {**said[0], **rest} if said else dict(schema)
    if isinstance(one.get("type"), list):
        one["type"] = next(kind for kind in one["type"] if kind != "null")
    if UPLOAD in every_part(one):
        return one
    if one.get("type") == "array" and "$ref" not in one["items"]:
        return {"type": "string", "pattern": r"^\d{1,3}(,\d{1,3})*$", **_words(one)}
    if "$ref" in one or one.get("type") in ("array", "object"):
        return {"type": "string", "contentMediaType": "application/json", **_words(one), "contentSchema": one}
    return one


def _words(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("description", "x-alias-of") if key in schema}
