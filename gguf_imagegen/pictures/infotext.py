"""The `parameters` text that AUTOMATIC1111 tools read and write, and its place in PNG, JPEG and WebP files.

The text is the prompt, a `Negative prompt:` line, and one line of `Key: value` pairs. PNG carries it as a
text chunk named `parameters`; JPEG and WebP as the EXIF UserComment (see stable-diffusion-webui,
modules/infotext_utils.py and modules/images.py). It never holds a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from PIL import ExifTags, Image, PngImagePlugin

NOTHING_MORE: Mapping[str, object] = MappingProxyType({})

# A1111's pattern, with the length of a key bounded: unbounded, hostile text takes quadratic time.
_PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
PROMPT, NEGATIVE, UPSCALED = "Prompt", "Negative prompt", "Postprocess upscale"
_UNICODE = b"UNICODE\0"
_ASCII = b"ASCII\0\0\0"
_JPEG_SEGMENT_BYTES = 65533
MAX_TEXT = 1 << 18
MAX_LINE = 1 << 15
"""Characters of a last line that is searched for pairs: a pattern holds the interpreter meanwhile."""


def settings_of(
    *,
    prompt: str,
    negative_prompt: str = "",
    steps: int,
    sampler: str,
    schedule: str,
    cfg_scale: float,
    seed: int,
    width: int,
    height: int,
    model: str,
    model_hash: str | None = None,
    version: str,
    extra: Mapping[str, object] = NOTHING_MORE,
) -> dict[str, str]:
    """What made one image, by the names that A1111 gives: `text_of` prints it, `parse_parameters` reads it.

    `extra` stands before the version; what is None is left out. Of `model` only the last path component is
    told.
    """
    said: dict[str, object] = {
        PROMPT: prompt.strip(),
        NEGATIVE: negative_prompt.strip(),
        "Steps": steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": cfg_scale,
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": re.split(r"[\\/]", model)[-1],
        "Model hash": model_hash,
        **extra,
        "Version": version,
    }
    return {key: _plain(value) for key, value in said.items() if value is not None}


def text_of(settings: Mapping[str, str]) -> str:
    """The text for one image."""
    pairs = {key: value for key, value in settings.items() if key not in (PROMPT, NEGATIVE)}
    lines = [settings.get(PROMPT, "")]
    if negative := settings.get(NEGATIVE):
        lines.append(f"{NEGATIVE}: {negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items()))
    return "\n".join(lines).strip()


def parse_parameters(text: str) -> dict[str, str]:
    """`Prompt`, `Negative prompt`, and each pair of the last line; any text at all is at least a prompt."""
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1]) if len(lines[-1]) <= MAX_LINE else []
    fewest = 1 if lines[-1].startswith(f"{UPSCALED} ") else 3  # A1111's rule, but for its extras' own line:
    if len(pairs) < fewest:  # fewer pairs are words of the prompt that happen to hold a colon
        pairs = []
    else:
        lines.pop()
    cut = next((i for i, line in enumerate(lines) if line.strip().startswith(f"{NEGATIVE}:")), len(lines))
    negative = "\n".join(line.strip() for line in lines[cut:]).removeprefix(f"{NEGATIVE}:")
    return {
        PROMPT: "\n".join(line.strip() for line in lines[:cut]),
        NEGATIVE: negative.strip(),
        **{key: _unquoted(value) for key, value in pairs},
    }


def png_text(text: str) -> PngImagePlugin.PngInfo:
    """The PNG chunk: tEXt where Latin-1 can say it, else iTXt."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", _encodable(text))
    return chunks


def exif(text: str) -> bytes:
    """An EXIF block with the UserComment, or nothing if a JPEG segment cannot hold it."""
    block = Image.Exif()
    block.endian = ">"  # the comment is UTF-16 in the byte order of its block
    comment = _UNICODE + _encodable(text).encode("utf-16-be")
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    encoded = block.tobytes()
    return encoded if len(encoded) <= _JPEG_SEGMENT_BYTES else b""


def read(image: Image.Image) -> str | None:
    """The `parameters` text of an opened file, whose pixels are not read for it.

    Raises ValueError if it is longer than MAX_TEXT bytes.
    """
    text = image.info.get("parameters")
    if isinstance(text, str):
        return _bounded(str(text))
    block = Image.Image.getexif(image)  # PNG's own would decode the pixels to look behind them
    comment = block.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return None
    if comment.startswith(_UNICODE):
        return _bounded(comment.removeprefix(_UNICODE).decode("utf-16-be", "replace"))
    return _bounded(comment.removeprefix(_ASCII).decode("utf-8", "replace").strip("\0")) or None


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"its parameters are longer than {MAX_TEXT} characters")
    return text


def _plain(value: object) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\r]', text) else text


def _unquoted(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON can carry and no file encoding can, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
