"""Files that are built to keep a reader busy are refused before Pillow reads them; real ones are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from gguf_imagegen.pictures import decode
from gguf_imagegen.vocabulary.errors import InvalidImage


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", behind: bytes = b"") -> bytes:
    """A picture of 8x8 pixels, with these chunks around its pixels."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), before, pixels, behind, chunk(b"IEND")])


def tiff(tags: int, *, size: int = 0, next_at: int = 0, pad: bytes = b"") -> bytes:
    """A directory with so many tags, each of which says that it holds so many bytes."""
    entries = b"".join(struct.pack("<HHII", 40_000 + number % 20_000, 7, size, 8) for number in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + struct.pack("<I", next_at) + pad


def jpeg(segments: bytes = b"") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "JPEG")
    return out.getvalue()[:2] + segments + out.getvalue()[2:]


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of empty chunks": (lambda: png(chunk(b"prVt") * 100_000), "more than 1000 chunks"),
    "PNG of empty chunks behind": (lambda: png(b"", chunk(b"prVt") * 100_000), "more than 1000 chunks"),
    "PNG of empty pixels": (lambda: png(b"", chunk(b"IDAT") * 150_000), "more than 100000 chunks"),
    "PNG of text": (lambda: png(chunk(b"tEXt", b"k\0" + b"t" * (1 << 20)) * 5), "4 MiB of text"),
    "PNG with many tags": (lambda: png(chunk(b"eXIf", tiff(60_000))), "more than 2000 tags"),
    "PNG with tags behind": (lambda: png(b"", chunk(b"eXIf", tiff(60_000))), "more than 2000 tags"),
    "PNG with tags that overlap": (
        lambda: png(chunk(b"eXIf", tiff(1_000, size=60_000, pad=bytes(60_000)))),
        "hold too much",
    ),
    "PNG with tags as text": (
        lambda: png(chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + tiff(9_000).hex().encode())),
        "more than 2000 tags",
    ),
    "TIFF of tags": (lambda: tiff(65_535), "more than 2000 tags"),
    "TIFF of directories": (
        lambda: tiff(0, next_at=14, pad=b"".join(struct.pack("<HI", 0, 20 + 6 * i) for i in range(30_000))),
        "more than 2000 directories",
    ),
    "JPEG of segments": (lambda: jpeg(segment(0xE5, b"") * 5_000), "more than 1000 segments"),
    "JPEG of padding": (lambda: jpeg(b"\xff" * 3_000_000), "more than 1000 segments"),
    "JPEG of rubbish": (lambda: jpeg(bytes(3_000_000)), "bytes between two segments"),
    "JPEG of scans": (lambda: jpeg() + b"\xff\xda\0\x02" * 100, "more than 64 scans"),
    "JPEG with many tags": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + tiff(5_000))), "more than 2000 tags"),
    "JPEG with an index": (lambda: jpeg(segment(0xE2, b"MPF\0" + tiff(5_000))), "more than 2000 tags"),
    "GIF of comments": (
        lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe" + b"\x01a" * 500_000,
        "more than 10000 blocks",
    ),
    "WebP of chunks": (
        lambda: b"RIFF" + struct.pack("<I", 8_000_004) + b"WEBP" + b"JUNK\0\0\0\0" * 1_000_000,
        "more than 1000 chunks",
    ),
    "WebP of frames": (
        lambda: b"RIFF" + struct.pack("<I", 8_000_004) + b"WEBP" + b"ANMF\0\0\0\0" * 1_000_000,
        "more than 5000 frames",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_unread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every reader, in words, and before Pillow walks through them."""
    make, words = HOSTILE[kind]
    readers: tuple[Callable[[bytes], Any], ...] = (
        lambda data: decode.inspect(data, max_pixels=10_000, param="image"),
        lambda data: decode.decode(data, max_pixels=10_000, param="image"),
        decode.read_parameters,
    )
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("the tags were read"))
    for read in readers:
        with pytest.raises(InvalidImage, match=words) as caught:
            read(make())
        assert caught.value.message == "Invalid image"


def test_large_run_length_coded_bitmaps() -> None:
    """Pillow unpacks them in Python: only small ones are taken."""
    head = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(1024)
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + 4, 0, 0, 14 + len(head)) + head + b"\0\1\0\0"
    with pytest.raises(InvalidImage, match="5000x5000 is too large for run-length coded BMP"):
        decode.decode(data, max_pixels=50_000_000, param="image")


def test_large_webp() -> None:
    """libwebp takes many times the memory of the picture, and decodes it in one go."""
    out = io.BytesIO()
    Image.new("RGB", (4200, 4200)).save(out, "WEBP", method=0)
    with pytest.raises(InvalidImage, match="4200x4200 is too large for WebP"):
        decode.inspect(out.getvalue(), max_pixels=50_000_000, param="image")


def test_pictures_as_programs_write_them() -> None:
    """Text, profiles, EXIF and many frames as real files have them are no reason to refuse one."""
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "{}" * 400_000)
    text.add_itxt("prompt", "日本語" * 50_000, zip=True)
    exif = Image.Exif()
    exif.update({0x010E: "a" * 5_000, 0x0112: 1})
    frames = [Image.new("P", (16, 16), number) for number in range(300)]
    kinds: dict[str, dict[str, Any]] = {
        "PNG": {"pnginfo": text, "icc_profile": bytes(100_000), "exif": exif},
        "JPEG": {"icc_profile": bytes(300_000), "exif": exif, "progressive": True, "comment": "a" * 50_000},
        "WEBP": {"exif": exif, "icc_profile": bytes(100_000)},
        "GIF": {"save_all": True, "append_images": frames, "comment": "a" * 60_000},
        "TIFF": {"save_all": True, "append_images": frames, "compression": "tiff_deflate"},
    }
    for format, options in kinds.items():
        out = io.BytesIO()
        Image.new("RGB", (300, 200), "red").save(out, format, **options)
        assert decode.inspect(out.getvalue(), max_pixels=100_000, param="image").size == (300, 200)
        assert decode.decode(out.getvalue(), max_pixels=100_000, param="image").size == (300, 200)
