"""Large pictures and long texts: no more of them is in memory, or held for long, than is needed."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from gguf_imagegen.pictures import data_urls, decode, encode, infotext
from gguf_imagegen.vocabulary.errors import InvalidImage


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("turned", [1, 6])
def test_shrunk_while_it_is_decoded(format: str, mode: str, turned: int) -> None:
    """No less than three times what is enough, upright, and the same picture as the whole one resized."""
    if format in ("JPEG", "BMP") and mode in ("RGBA", "P"):
        mode = "RGB"
    wide = (
        Image.linear_gradient("L").resize((1000, 700)).rotate(30).convert("RGBA" if mode == "RGBA" else "RGB")
    )
    exif = Image.Exif()
    exif[0x0112] = turned
    out = io.BytesIO()
    options = {"exif": exif} if format in ("PNG", "JPEG", "TIFF") else {}
    wide.convert(mode).save(out, format, **options)
    whole = decode.decode(out.getvalue(), max_pixels=1_000_000, param="image")
    assert decode.inspect(out.getvalue(), max_pixels=1_000_000, param="image").size == whole.size
    small = decode.decode(out.getvalue(), max_pixels=1_000_000, param="image", enough=(70, 50))
    assert small.mode == whole.mode
    assert small.width <= whole.width / 2
    assert small.width >= 210
    assert small.height >= 150
    expected = np.asarray(decode.fit(whole, 70, 50), np.int16)
    assert np.abs(np.asarray(decode.fit(small, 70, 50), np.int16) - expected).mean() < 3


def test_what_is_not_much_larger_is_decoded_whole() -> None:
    out = io.BytesIO()
    Image.new("RGB", (400, 300)).save(out, "PNG")
    assert decode.decode(out.getvalue(), max_pixels=1_000_000, param="image", enough=(100, 60)).size == (
        400,
        300,
    )


def test_headers_tell_the_memory() -> None:
    """Four bytes a pixel for most files, more for those whose decoders take more."""
    sizes = {}
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("JPEG", {"progressive": True}),
    )  # fmt: skip
    for format, options in kinds:
        out = io.BytesIO()
        Image.new("RGB", (100, 50)).save(out, format, **options)
        header = decode.inspect(out.getvalue(), max_pixels=1_000_000, param="image")
        sizes[format + "".join(options)] = header.memory // 5000
    assert sizes == {"PNG": 4, "JPEG": 4, "WEBP": 16, "JPEGprogressive": 12}


def test_long_base64_is_decoded_in_steps() -> None:
    """Of any length, folded or escaped, with padding at its end alone."""
    data = bytes(range(256)) * 5_000 + b"end"
    plain = base64.b64encode(data).decode()
    folded = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    escaped = plain.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    for text in (plain, folded, folded + "\r\n", f"data:image/png;base64,{escaped}", plain.rstrip("=")):
        assert data_urls.decode_data_url(text, "image") == data
    for text in (plain + plain, plain[:400_000] + "=" + plain[400_000:], plain[:400_000] + "!" + plain):
        with pytest.raises(InvalidImage):
            data_urls.decode_data_url(text, "image")
    with pytest.raises(InvalidImage, match="must be base64"):
        data_urls.decode_data_url("data:," + "%41" * 400_000, "image")


def test_parameters_of_a_large_picture_are_read_without_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were read"))
    out = io.BytesIO()
    Image.new("L", (3000, 3000)).save(out, "PNG")
    assert decode.read_parameters(out.getvalue()) is None


def test_long_parameters() -> None:
    """A long last line is words, not pairs; a text without measure is refused."""
    line = ", ".join(f"Key {number}: {number}" for number in range(4000))
    assert len(line) > 32768
    assert list(infotext.parse_parameters(f"a cat\n{line}")) == ["Prompt", "Negative prompt"]
    data = encode.encode(bytes(3 * 16 * 16), 16, 16, format="png", parameters="é" * 300_000)
    with pytest.raises(InvalidImage, match="parameters are longer"):
        decode.read_parameters(data)
