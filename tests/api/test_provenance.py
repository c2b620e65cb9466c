"""What a picture says of its source: XMP in every format, from every kind of request, unless it is off."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from gguf_imagegen.api.dialects.mcp.showing import fitting
from gguf_imagegen.pictures import encode, provenance, thumbnails
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, noise, picture, png
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
ATTRIBUTE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
FORMATS: tuple[encode.ImageFormat, ...] = ("png", "jpeg", "webp")


def source(file: bytes | str) -> str | None:
    """As any reader of XMP finds it: the attribute of the description; None without a packet."""
    xmp = picture(file).info.get("xmp")
    if xmp is None:
        return None
    packet = re.sub(r"<\?xpacket.*?\?>", "", xmp.decode())
    (found,) = [each.get(ATTRIBUTE) for each in ElementTree.fromstring(packet).iter() if each.get(ATTRIBUTE)]
    return found


async def made(app: App, route: str = GENERATIONS, **fields: Any) -> str:
    status, body = await app.post(route, **{**SMALL, "steps": 1, "response_format": "b64_json", **fields})
    assert status == 200, body
    return str(body["data"][0]["b64_json"])


async def test_every_format_and_request_says_its_source(running: RunningApp) -> None:
    """A new picture and an edited one, beside the `parameters` text; nothing when it is switched off."""
    image = data_url(png(noise(64, 64)))
    async with running(engine=QuickEngine) as app:
        for output_format in FORMATS:
            file = await made(app, output_format=output_format)
            assert source(file) == MADE
            _, told = await app.post("/v1/images/info", image=file)
            assert told["parameters"]["Prompt"] == SMALL["prompt"]
            assert source(await made(app, EDITS, output_format=output_format, image=image)) == EDITED
    async with running(engine=QuickEngine, provenance=False) as app:
        assert [source(await made(app, output_format=each)) for each in FORMATS] == [None] * 3


@pytest.mark.parametrize("format", FORMATS)
def test_copies_keep_it(format: encode.ImageFormat) -> None:
    """Thumbnails and smaller copies; what is not ours is not taken over, for it may tell anything."""
    kinds: tuple[provenance.SourceType, ...] = (
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
    )
    for kind, expected in zip(kinds, (MADE, EDITED), strict=True):
        file = encode.encode_picture(noise(256, 256), format=format, xmp=provenance.packet(kind))
        assert source(thumbnails.make(file, 128) or b"") == expected
        assert source(fitting(file, 1000)[0]) == expected
    foreign = encode.encode_picture(noise(256, 256), format=format, xmp=b"<x:xmpmeta>me</x:xmpmeta>")
    small = thumbnails.make(foreign, 128) or b""
    assert "xmp" not in picture(small).info
