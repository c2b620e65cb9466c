"""The JSON schema of sd.cpp's native request: the tree of its leaves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gguf_imagegen.api.dialects.sdcpp.request import LEAVES, Leaf
from gguf_imagegen.api.openapi.schemas import NO_EFFECT, Schema, every_part


def native_properties(image: Mapping[str, Schema]) -> dict[str, Schema]:
    """The tree of its leaves, each with the schema of the field that it means."""
    tree: dict[str, Schema] = {}
    for path, leaf in LEAVES.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {"type": "object", "properties": {}})["properties"]
        node[name] = _leaf(leaf, image)
    return tree


def _leaf(leaf: Leaf, image: Mapping[str, Schema]) -> Schema:
    """Without sd.cpp's default: what is not said is the model's own here."""
    field = {"init_image": "mask", "ref_images": "image"}.get(leaf.field, leaf.field)
    if field == "lora":
        schema = {"type": "array", "items": {"type": "object"}, "description": "of `path` and `multiplier`"}
    elif field in image:
        schema = {key: value for key, value in copy.deepcopy(image[field]).items() if key != "default"}
        for part in every_part(schema):
            if "enum" in part and isinstance(leaf.default, str) and leaf.default not in part["enum"]:
                part["enum"] = [leaf.default, *part["enum"]]
    else:
        schema = _type_of(leaf.default)
        if not leaf.field:
            schema["description"] = NO_EFFECT
    return schema


def _type_of(default: Any) -> Schema:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return {"type": kinds[type(default)]} if type(default) in kinds else {}
