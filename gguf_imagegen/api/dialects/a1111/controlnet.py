"""The ControlNet extension's part of a request, and what its clients look up.

https://github.com/Mikubill/sd-webui-controlnet/wiki/API; Forge has the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from gguf_imagegen.api import answers
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.planning.control import PREPROCESSORS, listed_control_nets
from gguf_imagegen.planning.fields import Finite
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnsupportedOperation

EXTENSION = "controlnet"
PARAM = "alwayson_scripts"
API_VERSION = 3
_NO_EFFECT: Mapping[str, tuple[object, ...]] = {
    "guidance_start": (0, 0.0),
    "guidance_end": (1, 1.0),
    "control_mode": (0, "Balanced"),
    "inpaint_crop_input_image": (True, False),
    "mask": (),
}
"""Keys with the values that ask for nothing."""


class Unit(BaseModel):
    """One ControlNet of a request; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    enabled: bool = True
    image: Any = Field(None, validation_alias=AliasChoices("input_image", "image"))
    model: str = "None"
    module: str = "none"
    weight: Finite = Field(1.0, ge=0, le=2)


def without_controlnet(scripts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scripts.items() if name.lower() != EXTENSION}


def control_fields(scripts: Mapping[str, Any], init_images: list[Any], warnings: list[str]) -> dict[str, Any]:
    """Our fields of the one unit that is enabled, if any; `warnings` are told what has no effect.

    A unit without an image takes the first of the request, as the extension does.
    """
    units = [_unit(item) for item in _args(scripts)]
    wanted = [(unit, item) for unit, item in units if unit.enabled and _bare(unit.model) != "None"]
    if any(unit.enabled and (unit, item) not in wanted for unit, item in units):
        warnings.append(f"{PARAM}: a unit of 'ControlNet' without a model has no effect")
    if not wanted:
        return {}
    if len(wanted) > 1:
        raise UnsupportedOperation(
            f"{PARAM}: {len(wanted)} ControlNets are enabled, and a picture takes one at a time", param=PARAM
        )
    ((unit, item),) = wanted
    for key, defaults in _NO_EFFECT.items():
        if item.get(key) is not None and item[key] not in defaults:
            warnings.append(f"{PARAM}: ControlNet's {key!r} has no effect on this engine")
    module = unit.module.lower()
    if module not in PREPROCESSORS:
        raise UnsupportedOperation(
            f"{PARAM}: there is no ControlNet module {unit.module[:60]!r}; known: {', '.join(PREPROCESSORS)}",
            param=PARAM,
        )
    image = unit.image.get("image") if isinstance(unit.image, Mapping) else unit.image
    return {
        "control": image or (init_images[0] if init_images else None),
        "control_model": _bare(unit.model),
        "control_strength": unit.weight,
        "control_preprocess": module,
    }


def _args(scripts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    script: Any = next((value for name, value in scripts.items() if name.lower() == EXTENSION), {})
    args = script.get("args", []) if isinstance(script, Mapping) else script
    if not isinstance(args, list) or not all(isinstance(item, Mapping) for item in args):
        raise InvalidRequest(f"{PARAM}: ControlNet's 'args' must be a list of units", param=PARAM)
    yield from args


def _unit(item: Mapping[str, Any]) -> tuple[Unit, Mapping[str, Any]]:
    try:
        return Unit.model_validate({key: value for key, value in item.items() if value is not None}), item
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{PARAM}: ControlNet's {where}: {fault['msg']}", param=PARAM) from exc


def _bare(model: str) -> str:
    """ "NAME [SHORT HASH]", as the extension lists them, without the hash."""
    name, bracket, _ = model.rpartition(" [")
    return name if bracket and model.endswith("]") else model


# -- what clients look up -----------------------------------------------------------------------------


@endpoint()
async def version(request: web.Request) -> web.Response:
    """GET /controlnet/version: of the extension's API."""
    return reply(answers.AnyObject, {"version": API_VERSION})


@endpoint()
async def model_list(request: web.Request) -> web.Response:
    """GET /controlnet/model_list: the files of --control-dir that can be used."""
    found = await asyncio.to_thread(listed_control_nets, request.app[SERVICE].settings.control_dir)
    return reply(answers.AnyObject, {"model_list": [each.name for each in found if not each.fault]})


@endpoint()
async def module_list(request: web.Request) -> web.Response:
    """GET /controlnet/module_list: the preprocessors."""
    detail = {name: {"model_free": False, "sliders": []} for name in PREPROCESSORS}
    return reply(answers.AnyObject, {"module_list": list(PREPROCESSORS), "module_detail": detail})


@endpoint()
async def settings(request: web.Request) -> web.Response:
    """GET /controlnet/settings: how many units a picture takes."""
    return reply(answers.AnyObject, {"control_net_unit_count": 1})
