"""The library that reads text, in the server's process for it; tests/clients/install --all has it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image, ImageDraw, ImageFont

from gguf_imagegen.engines.ocr.reader import Reader
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import InvalidImage
from tests.api.client import png

PYTHON = Path(__file__).parents[2] / "build" / "ocr" / "bin" / "python"
MANY = 50_000_000
WORDS = ["Hello world 1234", "A second line of text"]


def written(scale: int = 1) -> Image.Image:
    page = Image.new("RGB", (600 * scale, 200 * scale), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(36 * scale)
    for number, line in enumerate(WORDS):
        draw.text((20 * scale, (20 + 90 * number) * scale), line, fill="black", font=font)
    return page


@pytest_asyncio.fixture
async def reader() -> AsyncIterator[Reader]:
    """As the server has it, with the Python that has the library."""
    command = (str(PYTHON), "-m", "gguf_imagegen.engines.ocr.worker", "2")
    made = Reader(lambda: EngineProcess(stall_timeout=60, command=command), most=4, keep=-1)
    yield made
    await made.close()


async def test_it_reads(reader: Reader) -> None:
    """Lines from top to bottom, each with its box in pixels of the picture as it was sent, also if that is
    larger than what the library looks at; a blank picture has none; what is no picture is refused, and the
    process goes on.
    """
    for scale in (1, 4):
        lines = await reader.read(Read(png(written(scale)), MANY))
        assert [line.text for line in lines] == WORDS
        for number, line in enumerate(lines):
            assert line.score > 0.8
            (left, top), (right, bottom) = line.box[0], line.box[2]
            middle = (20 + 90 * number + 22) * scale
            assert abs((top + bottom) / 2 - middle) < 15 * scale
            assert abs(left - 20 * scale) < 15 * scale < right
    assert await reader.read(Read(png(Image.new("RGB", (200, 100), "white")), MANY)) == ()
    with pytest.raises(InvalidImage):
        await reader.read(Read(b"no picture", MANY))
    with pytest.raises(InvalidImage, match="600x200"):
        await reader.read(Read(png(written()), 1000))
    assert len(await reader.read(Read(png(written()), MANY))) == 2


def test_nothing_is_downloaded() -> None:
    """The models are in the wheel, each as large as the library wants it."""
    code = (
        "import pathlib, rapidocr;"
        "print(*sorted(p.name for p in (pathlib.Path(rapidocr.__file__).parent / 'models').glob('*.onnx')))"
    )
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert len(found.stdout.split()) >= 3
