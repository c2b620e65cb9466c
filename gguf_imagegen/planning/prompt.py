"""Prompts made safe: sd.cpp's own parser of emphasis aborts or draws garbage on some texts."""

from __future__ import annotations

import re

from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, PromptTooLong, missing

_WEIGHT = re.compile(r":([+-]?[.\d]+)\)")
_PLAIN_WEIGHT = re.compile(r"(?:\d{1,2}(?:\.\d{0,6})?|\.\d{1,6})")
_LORA_TAG = re.compile(r"<(?:lora|lyco):[^<>]*>")
_NO_TEXT = re.compile(
    "[^\0-\U0001ffff\U00020000-\U0002a6df\U0002a700-\U0002b81d\U0002b820-\U0002cead\U0002ceb0-\U0002ebe0"
    "\U0002ebf0-\U0002ee5d\U0002f800-\U0002fa1d\U00030000-\U0003134a\U00031350-\U00033479]+"
)
"""All that is neither in Unicode's first two planes nor, as `is_letter` of sd.cpp's tokenize_util.cpp lists
them, Han: of these it asks `isspace`, whose table in glibc has 384 entries, and reads further and further
beyond it. glibc's own memory reaches to about U+2B600.
"""
MAX_NESTING = 16
"""Weights multiply with each level, and an infinite one makes the whole picture NaN."""


def require_prompt(prompt: str) -> None:
    """Raises InvalidRequest if there is nothing to draw by."""
    if not _LORA_TAG.sub("", prompt).strip():
        raise InvalidRequest(
            "prompt: is required and must not be empty", param="prompt", faults=missing("prompt")
        )


def checked_prompt(text: str, param: str, settings: Settings, notes: list[str]) -> str:
    """The text for the engine; adds to `notes` what was taken out of it. `param` is its field's name."""
    size = len(text.encode("utf-8"))
    if len(text) > settings.max_prompt_chars or size > 2 * settings.max_prompt_chars:
        raise PromptTooLong(
            f"{param}: {len(text)} characters ({size} bytes) are too long; this server takes"
            f" {settings.max_prompt_chars} characters, {2 * settings.max_prompt_chars} bytes",
            param=param,
        )
    if "\0" in text:
        raise InvalidRequest(f"{param}: contains a NUL character; remove it", param=param)
    if _NO_TEXT.search(text):
        notes.append(
            f"{param}: characters without a meaning to the model (private or unassigned) were removed"
        )
        text = _NO_TEXT.sub("", text)
    for tag in _LORA_TAG.findall(text):
        notes.append(
            f"{param}: {tag[:80]} was removed; tags work in prompts of /sdapi, with names of its list"
            " (see /v1/addons) and plain weights; everywhere else use the field 'lora'"
        )
    while _LORA_TAG.search(text):  # what is left of a nested tag may be a tag again
        text = _LORA_TAG.sub("", text)
    if _nesting(text) > MAX_NESTING:
        raise InvalidRequest(f"{param}: brackets nest more than {MAX_NESTING} levels deep", param=param)
    return neutralise_emphasis(text)


def _nesting(text: str) -> int:
    """How deep emphasis nests, `(` and `[` counted apart as sd.cpp's parser does; unclosed ones count."""
    deepest = 0
    for opening, closing in ("()", "[]"):
        depth = 0
        for mark in re.findall(r"\\.|[()\[\]]", text):
            if mark == opening:
                depth += 1
                deepest = max(deepest, depth)
            elif mark == closing:
                depth = max(0, depth - 1)
    return deepest


def neutralise_emphasis(text: str) -> str:
    """Break `(x:WEIGHT)` where WEIGHT is no plain number from 0 to 10: sd.cpp's parser aborts on some.

    The parser takes `:([+-]?[.\\d]+)\\)` as a weight (`parse_prompt_attention` in sd.cpp's util.cpp); a
    space after the colon makes it plain text.
    """

    def mend(match: re.Match[str]) -> str:
        plain = _PLAIN_WEIGHT.fullmatch(match[1]) and float(match[1]) <= 10
        return match[0] if plain else f": {match[1]})"

    return _WEIGHT.sub(mend, text)
