"""AUTOMATIC1111's routes that work on finished pictures: enlarge them, and read what is written in them.

Shapes and arithmetic are those of stable-diffusion-webui's modules/api/models.py and
scripts/postprocessing_upscale.py.
"""

from __future__ import annotations

import asyncio
import base64
import re
from functools import partial
from typing import Any

from aiohttp import web
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialects.a1111.answers import ExtrasAnswer, ExtrasBatchAnswer, PngInfo
from gguf_imagegen.api.dialects.a1111.lists import PIXEL_UPSCALERS
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE, PICTURE_TEXT, READING, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.submit import begin, finish
from gguf_imagegen.pictures import data_urls, decode, encode, infotext
from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.planning.fields import Finite
from gguf_imagegen.planning.request import Upload
from gguf_imagegen.vocabulary.errors import InvalidImage, InvalidRequest, InvalidSize, UnsupportedOperation

TO_SIZE = 1
"""The value of `resize_mode` that takes width and height in the place of a factor."""
LARGEST_FACTOR = 8.0
RESIZED_MEMORY = 2
"""Times the memory of decoding that it takes to resize and encode the picture as well."""


SIDES = ("upscaling_resize_w", "upscaling_resize_h")
"""Of these 0 says nothing."""


class _File(BaseModel):
    data: Upload
    name: str = ""


class ExtrasRequest(BaseModel):
    """Restoring of faces and the second upscaler are accepted and have no effect."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    image: Upload | None = None
    image_list: list[_File] = Field([], alias="imageList", max_length=16)
    resize_mode: int = Field(0, ge=0, le=1)
    upscaling_resize: Finite = Field(2.0, gt=0, le=LARGEST_FACTOR)
    upscaling_resize_w: int = Field(512, ge=1, le=1 << 16)
    upscaling_resize_h: int = Field(512, ge=1, le=1 << 16)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    dry_run: bool = False


class PngInfoRequest(BaseModel):
    image: str = Field(description="base64 or data URL")


@endpoint(
    ExtrasAnswer,
    request=ExtrasRequest,
    required=("image",),
    errors=PICTURE,
    example={"image": PICTURE_TEXT, "upscaler_1": "Lanczos", "upscaling_resize": 2},
)
async def extra_single_image(request: web.Request) -> web.Response:
    """POST /sdapi/v1/extra-single-image."""
    wanted = await _read(request)
    if wanted.image is None:
        raise InvalidRequest("image: an image is required", param="image")
    made = await _enlarged(request, wanted, wanted.image)
    return await asyncio.to_thread(_answer, made)


def _answer(made: bytes | list[bytes]) -> web.Response:
    """Megabytes of base64 take their time: call it in a thread."""
    if isinstance(made, bytes):
        return reply(ExtrasAnswer, {"html_info": "", "image": base64.b64encode(made).decode("ascii")})
    texts = [base64.b64encode(data).decode("ascii") for data in made]
    return reply(ExtrasBatchAnswer, {"html_info": "", "images": texts})


@endpoint(
    ExtrasBatchAnswer,
    request=ExtrasRequest,
    required=("imageList",),
    errors=PICTURE,
    example={"imageList": [{"data": PICTURE_TEXT}], "upscaler_1": "Lanczos"},
)
async def extra_batch_images(request: web.Request) -> web.Response:
    """POST /sdapi/v1/extra-batch-images: one after the other."""
    wanted = await _read(request)
    if not wanted.image_list:
        raise InvalidRequest("imageList: at least one image is required", param="imageList")
    made = [await _enlarged(request, wanted, file.data) for file in wanted.image_list]
    return await asyncio.to_thread(_answer, made)


async def _read(request: web.Request) -> ExtrasRequest:
    wanted = await asyncio.to_thread(validated, ExtrasRequest, await read_body(request), SIDES)
    if wanted.dry_run:  # most of what these routes do is no job, so that there is nothing to foresee
        raise InvalidRequest("dry_run: there is none here; POST /v1/images/upscale has one", param="dry_run")
    return wanted


async def _enlarged(request: web.Request, wanted: ExtrasRequest, data: bytes) -> bytes:
    """The picture as a PNG file, by an ESRGAN model or by Pillow. "None" leaves it as it is, as there."""
    settings = request.app[SERVICE].settings
    name = wanted.upscaler_1 or "None"
    if name not in PIXEL_UPSCALERS:
        known = await asyncio.to_thread(names_in, settings.upscaler_dir, "upscaler")
        if name not in known:
            every = ", ".join([*PIXEL_UPSCALERS, *known])
            raise InvalidRequest(
                f"upscaler_1: there is no upscaler {name[:60]!r}; known: {every}", param="upscaler_1"
            )
        size = (await asyncio.to_thread(_header, data, settings.max_input_pixels)).size
        factor = factor_for(size, wanted, settings.max_input_pixels)
        if factor > 1:
            work = await begin(request, {"image": data, "upscale": factor, "upscaler": name}, "upscale")
            (data,) = await finish(request, work)
        else:
            name = "Lanczos"
    header = await asyncio.to_thread(_header, data, settings.max_input_pixels)
    work_on = partial(_resized, data, name, wanted, settings.max_input_pixels)
    return await request.app[SERVICE].pixels.in_turn(RESIZED_MEMORY * header.memory, work_on)


def factor_for(size: decode.Size, wanted: ExtrasRequest, max_pixels: int) -> float:
    """By how much to enlarge: to a size, as much as covers it. InvalidSize if that is too much."""
    factor: float = wanted.upscaling_resize
    if wanted.resize_mode == TO_SIZE:
        factor = max(wanted.upscaling_resize_w / size[0], wanted.upscaling_resize_h / size[1])
    width, height = (max(1, round(side * factor)) for side in size)
    if width * height > max_pixels:
        raise InvalidSize(
            f"upscaling_resize: {width}x{height} is more than the {max_pixels} pixels allowed",
            param="upscaling_resize",
        )
    if factor > LARGEST_FACTOR:
        raise InvalidSize(
            f"upscaling_resize: {factor:.2f} times is too much; at most {LARGEST_FACTOR:g}",
            param="upscaling_resize",
        )
    return factor


def _header(data: bytes, max_pixels: int) -> decode.Header:
    return decode.inspect(data, max_pixels=max_pixels, param="image")


def _resized(data: bytes, name: str, wanted: ExtrasRequest, max_pixels: int) -> bytes:
    """The last step of every upscaler: to the exact size, cropped to it if so wanted. CPU-bound."""
    picture = decode.flatten(decode.decode(data, max_pixels=max_pixels, param="image"))
    exact = (wanted.upscaling_resize_w, wanted.upscaling_resize_h)
    if name in PIXEL_UPSCALERS and name != "None":
        factor = factor_for(picture.size, wanted, max_pixels)
        kernel = Image.Resampling.NEAREST if name == "Nearest" else Image.Resampling.LANCZOS
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, kernel)
    if name != "None" and wanted.resize_mode == TO_SIZE and wanted.upscaling_crop:
        picture = ImageOps.fit(picture, exact, Image.Resampling.LANCZOS)
    return encode.encode_picture(picture, format="png")


@endpoint(PngInfo, request=PngInfoRequest, errors=(*READING, InvalidImage))
async def png_info(request: web.Request) -> web.Response:
    """POST /sdapi/v1/png-info: the `parameters` text of a picture, as it is and in its parts."""
    given = (await read_body(request)).get("image")
    if not isinstance(given, str):
        raise InvalidRequest("image: must be a base64 text", param="image")
    return reply(PngInfo, await asyncio.to_thread(_info, given))


def _info(given: str) -> dict[str, Any]:
    text = decode.read_parameters(data_urls.decode_data_url(given, "image")) or ""
    parts: dict[str, Any] = infotext.parse_parameters(text) if text else {}
    for key, value in list(parts.items()):
        if pair := re.fullmatch(r"(\d{1,6})x(\d{1,6})", value):
            parts |= {f"{key}-1": pair[1], f"{key}-2": pair[2]}
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": parts}


@endpoint(errors=(UnsupportedOperation,), status=0)
async def interrogate(request: web.Request) -> web.Response:
    """POST /sdapi/v1/interrogate: pictures cannot be described here."""
    raise UnsupportedOperation("interrogate: this server has no model that describes pictures")
