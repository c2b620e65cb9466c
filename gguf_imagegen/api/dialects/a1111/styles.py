"""AUTOMATIC1111's prompt styles: a CSV file of the administrator with `name`, `prompt` and `negative_prompt`.

As modules/styles.py of stable-diffusion-webui has it: `{prompt}` in a style is where the prompt goes, else
the style follows it after a comma.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.vocabulary.errors import InvalidRequest

PLACE = "{prompt}"
MOST = 50
"""Styles of one request."""


@dataclass(frozen=True)
class Style:
    """What a style adds to a prompt."""

    name: str
    prompt: str
    negative_prompt: str


NO_STYLES: Final[Mapping[str, Style]] = MappingProxyType({})


def read_styles(path: Path | None) -> Mapping[str, Style]:
    """By name, in the order of the file. Raises InvalidRequest for a file that cannot be read."""
    if path is None:
        return NO_STYLES
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [
                [row.get(name) or "" for name in ("name", "prompt", "negative_prompt")]
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise InvalidRequest(
            f"styles: {path.name} cannot be read: {type(exc).__name__}", param="styles"
        ) from exc
    return {name: Style(name, prompt, negative) for name, prompt, negative in rows if name}


def with_styles(data: Mapping[str, Any], known: Mapping[str, Style]) -> tuple[dict[str, Any], list[str]]:
    """The request with its styles in its prompts, and a warning for each that is not known."""
    names = data.get("styles")
    data, warnings = dict(data), list[str]()
    for name in map(str, names[:MOST] if isinstance(names, list) else ()):
        style = known.get(name)
        if style is None:
            there = f"known: {', '.join(known)}" if known else "there are none; see --styles"
            warnings.append(f"styles: no style {name[:60]!r}; {there}")
            continue
        for field, added in (("prompt", style.prompt), ("negative_prompt", style.negative_prompt)):
            data[field] = applied(added, str(data.get(field) or ""))
    return data, warnings


def applied(style: str, prompt: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


@endpoint(answers.ObjectList)
async def prompt_styles(request: web.Request) -> web.Response:
    """GET /sdapi/v1/prompt-styles."""
    styles = read_styles(request.app[SERVICE].settings.styles)
    return reply(answers.ObjectList, [asdict(style) for style in styles.values()])
