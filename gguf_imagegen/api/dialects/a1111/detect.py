"""What the ControlNet extension's preprocessors make of a picture, without drawing one.

The shapes are those of https://github.com/Mikubill/sd-webui-controlnet/wiki/API. The engine has one of the
preprocessors; it works in a process of its own, which is gone afterwards, beside whatever the lanes do.
"""

from __future__ import annotations

import asyncio
import base64

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialects.a1111.answers import DetectAnswer
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE, PICTURE_TEXT, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.pictures import decode, encode
from gguf_imagegen.planning.control import PREPROCESSORS
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.planning.request import Upload
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Edges
from gguf_imagegen.vocabulary.errors import (
    GenerationFailed,
    InvalidRequest,
    InvalidSize,
    UnsupportedOperation,
)
from gguf_imagegen.vocabulary.events import Made

RESOLUTION = 512
MOST_PIXELS = 1 << 22
MEMORY = 2
"""Times the memory of decoding that it takes to resize the picture as well."""
DETECTING = web.AppKey("controlnet_detecting", asyncio.Lock)


class DetectRequest(BaseModel):
    """Other keys have no effect: the engine's thresholds are its own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    controlnet_module: str = Field("none", json_schema_extra={"enum": [*PREPROCESSORS]})
    controlnet_input_images: tuple[Upload, ...] = Field((), max_length=16)
    controlnet_processor_res: int = Field(RESOLUTION, ge=-1, le=2048)


@endpoint(
    DetectAnswer,
    request=DetectRequest,
    required=("controlnet_input_images",),
    errors=(*PICTURE, UnsupportedOperation),
    example={"controlnet_module": "canny", "controlnet_input_images": [PICTURE_TEXT]},
)
async def detect(request: web.Request) -> web.Response:
    """POST /controlnet/detect: what a preprocessor makes of pictures, their shorter side at a resolution."""
    wanted = await asyncio.to_thread(validated, DetectRequest, await read_body(request))
    service, module = request.app[SERVICE], wanted.controlnet_module.lower()
    if module not in PREPROCESSORS:
        raise InvalidRequest(
            f"Module not available: {wanted.controlnet_module[:60]!r}; known: {', '.join(PREPROCESSORS)}",
            param="controlnet_module",
        )
    if not wanted.controlnet_input_images:
        raise InvalidRequest("No image selected", param="controlnet_input_images")
    if module == "canny" and "edges" not in service.abilities.tasks:
        raise UnsupportedOperation("the engine of this server has no 'canny'", param="controlnet_module")
    files = []
    for data in wanted.controlnet_input_images:
        picture = await _resized(service, data, wanted.controlnet_processor_res)
        if module == "canny":
            async with request.app[DETECTING]:
                picture = await _edges(service, picture)
        files.append(await asyncio.to_thread(_file, picture))
    return reply(DetectAnswer, {"images": files, "info": "Success"})


def prepare(app: web.Application) -> None:
    """One process at a time."""
    app[DETECTING] = asyncio.Lock()


async def _resized(service: Service, data: bytes, resolution: int) -> RawImage:
    most, param = service.settings.max_input_pixels, "controlnet_input_images"
    header = await asyncio.to_thread(decode.inspect, data, max_pixels=most, param=param)
    factor = (resolution if resolution >= 64 else RESOLUTION) / min(header.size)
    width, height = (round(side * factor) for side in header.size)
    if width * height > MOST_PIXELS:
        raise InvalidSize(
            f"controlnet_processor_res: {width}x{height} is more than the {MOST_PIXELS} pixels allowed",
            param="controlnet_processor_res",
        )

    def work() -> RawImage:
        picture = decode.decode(data, max_pixels=most, param=param)
        return decode.to_raw(decode.fit(decode.flatten(picture), width, height))

    return await service.pixels.in_turn(MEMORY * header.memory, work)


async def _edges(service: Service, picture: RawImage) -> RawImage:
    engine = service.backend.engine(service.pool.device)
    try:
        async for event in engine.run(Edges(picture)):
            if isinstance(event, Made):
                return event.artifact
    finally:
        await engine.close()
    raise GenerationFailed("The engine found no edges and did not say why.")


def _file(picture: RawImage) -> str:
    return base64.b64encode(encode.encode(picture.data, picture.width, picture.height, format="png")).decode(
        "ascii"
    )
