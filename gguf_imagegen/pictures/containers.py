"""Files of pictures walked from chunk to chunk, before Pillow reads them: it trusts every count in them.

A file that is built to keep a reader busy raises ValueError, which says of what it has too much. What is
merely broken is Pillow's to say. Formats: PNG (https://www.w3.org/TR/png-3/), JPEG (ITU T.81), GIF89a, RIFF
of WebP (RFC 9649), TIFF 6.0 and BigTIFF, whose directories are those of EXIF, too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

MAX_CHUNKS = 1_000
"""Chunks, segments or blocks of a file beside those of its pixels."""
MAX_PIXEL_CHUNKS = 100_000
MAX_FRAMES = 5_000
"""Of an animation; the first is used."""
MAX_SCANS = 64
"""A progressive JPEG goes over all its pixels with each; encoders make about ten."""
MAX_TEXT = 4 << 20
"""Bytes of text in a PNG."""
MAX_DIRECTORIES = 2_000
MAX_TAGS = 2_000
MAX_TAGS_IN_ALL = 50_000
MAX_NUMBERS = 500_000
"""Numbers in the directories of a TIFF: places and lengths of its strips for the most part."""
MAX_TILE = 1 << 24
"""Pixels of a TIFF's tile, for which memory is taken whatever the picture's size."""
MAX_PADDING = 1 << 10
_PIECE = 1 << 20


def check(data: bytes) -> None:
    """Raises ValueError for a file with more parts than a picture has."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"GIF8"):
        _check_gif(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)
    elif data.startswith((b"II", b"MM")):
        check_tiff(data)


def png_exif(data: bytes) -> bytes | None:
    """The EXIF block of a PNG, which may stand behind the pixels; None for any other file."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return next((data[at : at + size] for kind, at, size in _png_chunks(data) if kind == b"eXIf"), None)


# -- PNG ----------------------------------------------------------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of each chunk."""
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, size
        at += 12 + size


def _check_png(data: bytes) -> None:
    pixels = others = text = 0
    for kind, _, size in _png_chunks(data):
        if kind in (b"IDAT", b"fdAT", b"fcTL"):
            pixels += 1
        else:
            others += 1
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            text += size
        if others > MAX_CHUNKS or pixels > MAX_PIXEL_CHUNKS:
            raise ValueError(
                f"it has more than {MAX_PIXEL_CHUNKS if others <= MAX_CHUNKS else MAX_CHUNKS} chunks"
            )
        if text > MAX_TEXT:
            raise ValueError(f"it holds more than {MAX_TEXT >> 20} MiB of text")


# -- JPEG ---------------------------------------------------------------------------------------------


def _check_jpeg(data: bytes) -> None:
    exif = b""
    for number, (marker, at, size) in enumerate(_jpeg_segments(data)):
        if number >= MAX_CHUNKS:
            raise ValueError(f"it has more than {MAX_CHUNKS} segments")
        if marker == 0xE2 and data.startswith(b"MPF\0", at):
            check_tiff(data[at + 4 : at + size])
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at):  # Pillow joins them
            exif += data[at + 6 : at + size]
    check_exif(exif)
    scans = sum(data.count(b"\xff\xda", at, at + _PIECE) for at in range(0, len(data), _PIECE))
    if scans > MAX_SCANS:
        raise ValueError(f"it has more than {MAX_SCANS} scans")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and length of each segment before the pixels."""
    at = 2
    while at < len(data):
        marker = re.compile(rb"[^\xff]*\xff+").match(data, at, at + MAX_PADDING)
        if marker is None and at + MAX_PADDING < len(data):
            raise ValueError(f"it has more than {MAX_PADDING} bytes between two segments")
        if marker is None or marker.end() + 3 > len(data):
            return
        at = marker.end()
        kind = data[at]
        if kind in (0xDA, 0xD9):
            return
        if kind == 0xFF:  # more padding
            yield kind, at, 0
            continue
        size = (
            0
            if kind in (0x00, 0x01) or 0xD0 <= kind <= 0xD8
            else int.from_bytes(data[at + 1 : at + 3], "big")
        )
        yield kind, at + 3, max(0, size - 2)
        at += 1 + size


# -- GIF and WebP -------------------------------------------------------------------------------------


def _check_gif(data: bytes) -> None:
    """Extensions before the first frame, the only one that is read."""
    at = 13 + _palette(data, 10)
    blocks = 0
    while data[at : at + 1] == b"!":
        at += 2
        while (size := int.from_bytes(data[at : at + 1], "big")) and blocks <= 10 * MAX_CHUNKS:
            at += 1 + size
            blocks += 1
        at += 1
        blocks += 1
        if blocks > 10 * MAX_CHUNKS:
            raise ValueError(f"it has more than {10 * MAX_CHUNKS} blocks before its first frame")


def _palette(data: bytes, at: int) -> int:
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_webp(data: bytes) -> None:
    at, frames, others = 12, 0, 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        others += kind != b"ANMF"
        if frames > MAX_FRAMES:
            raise ValueError(f"it has more than {MAX_FRAMES} frames")
        if others > MAX_CHUNKS:
            raise ValueError(f"it has more than {MAX_CHUNKS} chunks")
        at += 8 + size + size % 2


# -- TIFF and EXIF ------------------------------------------------------------------------------------

_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Bytes of one value by its type."""
_BYTES = (1, 2, 6, 7)
_DIRECTORIES = (0x8769, 0x8825, 0xA005, 0x014A)
"""Tags that point to another directory: EXIF, GPS, interoperability, and TIFF's own."""
_TILE_SIDES = (322, 323)


def check_exif(block: bytes) -> None:
    check_tiff(block.removeprefix(b"Exif\0\0"))


def check_tiff(data: bytes) -> None:
    """Its directories, and those that they point to: how many tags, and how much they hold all together."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    first = _number(data, 8 if big else 4, order, big)
    waiting, seen = [first], set[int]()
    tags = size = numbers = 0
    while waiting:
        at = waiting.pop()
        if at in seen or at <= 0 or at >= len(data):
            continue
        seen.add(at)
        entries, after = _entries(data, at, order, big)
        waiting.append(_number(data, after, order, big))
        tags += len(entries)
        if len(seen) > MAX_DIRECTORIES:
            raise ValueError(f"it has more than {MAX_DIRECTORIES} directories")
        if len(entries) > MAX_TAGS or tags > MAX_TAGS_IN_ALL:
            raise ValueError(
                f"a directory of it has more than {MAX_TAGS} tags, or all have {MAX_TAGS_IN_ALL}"
            )
        sides = [value for tag, _, _, value in entries if tag in _TILE_SIDES]
        if len(sides) == 2 and sides[0] * sides[1] > MAX_TILE:
            raise ValueError(f"its tiles have more than {MAX_TILE} pixels")
        for tag, kind, count, value in entries:
            size += min(count * _SIZES.get(kind, 1), len(data))
            numbers += 0 if kind in _BYTES else count
            if tag in _DIRECTORIES:
                waiting.append(value)
        if size > 2 * len(data) + _PIECE or numbers > MAX_NUMBERS:
            raise ValueError("the tags of its directories hold too much")


def _number(data: bytes, at: int, order: str, big: bool) -> int:
    """An offset; 0, which is none, beyond the end."""
    code = f"{order}{'Q' if big else 'I'}"
    return int(struct.unpack_from(code, data, at)[0]) if at + struct.calcsize(code) <= len(data) else 0


def _entries(data: bytes, at: int, order: str, big: bool) -> tuple[list[tuple[int, int, int, int]], int]:
    """Tag, type, count and value of a directory's entries, at most so many as matter, and where it ends."""
    head, entry = (f"{order}Q", f"{order}HHQQ") if big else (f"{order}H", f"{order}HHII")
    start, each = at + struct.calcsize(head), struct.calcsize(entry)
    if start > len(data):
        return [], len(data)
    count = int(struct.unpack_from(head, data, at)[0])
    end = min(start + each * min(count, MAX_TAGS + 1), len(data))
    end -= (end - start) % each
    return list(struct.iter_unpack(entry, data[start:end])), start + each * count
