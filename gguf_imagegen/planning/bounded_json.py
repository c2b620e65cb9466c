"""JSON of strangers, bounded before it is parsed: a parser holds the whole interpreter until it is done.

Pictures, the one large thing that a request may hold, are cut out of the text first and put back afterwards.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gguf_imagegen.vocabulary.errors import InvalidRequest, PayloadTooLarge

MAX_TEXT = 1 << 20
"""Bytes of JSON outside its pictures."""
MAX_VALUES = 10_000
MAX_DEPTH = 32
SHORT = 1 << 16
"""Bytes of a string that is looked at as a whole; only longer ones can be cut out as pictures."""
_STEP = 1 << 18
_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_OF_PICTURES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_:;,.% "
"""What base64 and data: URLs are made of."""
_ESCAPES = ((b"\\/", b"/"), (b"\\n", b"\n"), (b"\\r", b"\r"))
"""Escapes that encoders of JSON put between it."""
_TRAILING_COMMA = re.compile(rb'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)
"""Or a string, whose commas stay."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def loads(data: bytes, what: str, *, param: str | None = None, notes: list[str] | None = None) -> Any:
    """The value in this UTF-8 text, called `what` in messages and `param` in errors.

    Comments that begin with `//` and trailing commas, as printed examples have them, are forgiven with a line
    in `notes`.

    Raises PayloadTooLarge for more than MAX_TEXT bytes outside pictures, InvalidRequest for more than
    MAX_VALUES values or MAX_DEPTH levels, and ValueError for what is no JSON.
    """
    scan = _Scan(data, what, param)
    scan.run()
    text = b"".join(scan.kept)
    try:
        value = json.loads(text.decode("utf-8"))
    except json.JSONDecodeError:
        text, commas = _TRAILING_COMMA.subn(lambda found: found[1] or b"", text)
        value = json.loads(text.decode("utf-8"))
        scan.forgiven["trailing commas"] = commas
    if scan.forgiven and notes is not None:
        notes.append(f"{what} is no strict JSON: {' and '.join(scan.forgiven)} were ignored")
    return _restored(value, scan.pictures) if scan.pictures else value


def json_object(value: object, name: str) -> dict[str, Any]:
    """An object, given as such or as JSON text."""
    if isinstance(value, str):
        try:
            value = loads(value.encode(), name, param=name)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name}: must be a JSON object", param=name)
    return value


@dataclass
class _Scan:
    """One walk from string to string; `kept` is the text with a name in each picture's place."""

    data: bytes
    what: str
    param: str | None
    kept: list[bytes] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    left: int = MAX_TEXT
    values: int = 0
    strings: int = 0
    depth: int = 0
    forgiven: dict[str, int] = field(default_factory=dict)
    """What is no JSON and was passed over, and how often."""
    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """Nobody can guess it, so that no text of the client's is taken for a picture's name."""

    def run(self) -> None:
        at = 0
        while True:
            quote = self.data.find(b'"', at, at + self.left + 1)
            comment = self.data.find(b"//", at, quote if quote >= 0 else at + self.left + 1)
            if comment >= 0:
                self._between(at, comment)
                at = self._comment(comment)
            elif quote >= 0:
                self._between(at, quote + 1)
                at = self._string(quote + 1)
            else:
                return self._between(at, len(self.data))

    def _between(self, start: int, end: int) -> None:
        """Text outside strings: what stands there says how many values there are, and how deep."""
        self._take(start, end)
        text = self.kept[-1]
        self.values += text.count(b",") + text.count(b"[") + text.count(b"{")
        if self.values > MAX_VALUES:
            raise self._refusal(f"holds more than {MAX_VALUES} values")
        for bracket in text.translate(None, _NO_BRACKETS):
            self.depth += 1 if bracket in b"[{" else -1
            if self.depth > MAX_DEPTH:
                raise self._refusal(f"is nested more than {MAX_DEPTH} levels deep")
            if self.depth < 0:
                raise ValueError("a bracket is closed that was not opened")

    def _comment(self, start: int) -> int:
        """Where the line ends; what is on it is no JSON, and costs as much."""
        self._count()
        self.forgiven["comments"] = 1
        end = self.data.find(b"\n", start, start + self.left + 1)
        end = len(self.data) if end < 0 else end
        self.left -= end - start
        if self.left < 0:
            raise self._too_large()
        return end

    def _count(self) -> None:
        self.strings += 1
        if self.strings > 2 * MAX_VALUES:
            raise self._refusal(f"holds more than {MAX_VALUES} values")

    def _string(self, start: int) -> int:
        """Where the string ends that begins here."""
        self._count()
        at = self._end_of_text(start)
        if self._ends(at):
            self._take(start, at + 1)
            return at + 1
        end = self._end_of_picture(start)
        if end is not None:
            self._cut(start, end)
            return end + 1
        while not self._ends(at):
            before, at = at, self._end_of_text(at)
            if at - start > self.left:
                raise self._too_large()
            if at == before:
                raise ValueError("a string does not end")
        self._take(start, at + 1)
        return at + 1

    def _end_of_text(self, start: int) -> int:
        """Where the string ends, or the part of it that is looked at once."""
        match = _TEXT.match(self.data, start, start + SHORT)
        return match.end() if match else start

    def _ends(self, at: int) -> bool:
        return self.data[at : at + 1] == b'"'

    def _end_of_picture(self, start: int) -> int | None:
        """Where this string's closing quote is, if nothing before it is foreign to base64."""
        at = start
        while at < len(self.data):
            piece = self.data[at : at + _STEP]
            quote = piece.find(b'"')
            piece = piece[:quote] if quote >= 0 else piece.removesuffix(b"\\")  # no half of an escape
            plain = piece
            for escape, _ in _ESCAPES if b"\\" in piece else ():
                plain = plain.replace(escape, b"")
            if plain.translate(None, _OF_PICTURES) or not (piece or quote >= 0):
                return None
            at += len(piece)
            if quote >= 0:
                return at
        return None

    def _cut(self, start: int, end: int) -> None:
        name = f"{self.mark}:{len(self.pictures)}"
        if self.data.find(b"\\", start, end) < 0:
            self.pictures[name] = str(memoryview(self.data)[start:end], "ascii")
        else:
            self.pictures[name] = "".join(self._unescaped(start, end))
        self.kept.append(name.encode() + b'"')

    def _unescaped(self, start: int, end: int) -> Iterator[str]:
        while start < end:
            piece = self.data[start : min(start + _STEP, end)]
            piece = piece if len(piece) < _STEP else piece.removesuffix(b"\\")
            start += len(piece)
            for escape, meaning in _ESCAPES:
                piece = piece.replace(escape, meaning)
            yield piece.decode("ascii")

    def _take(self, start: int, end: int) -> None:
        self.left -= end - start
        if self.left < 0:
            raise self._too_large()
        self.kept.append(self.data[start:end])

    def _refusal(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{self.what} {reason}", param=self.param)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"{self.what} holds more than {MAX_TEXT >> 20} MiB of text; only pictures (base64) may be larger",
            param=self.param,
        )


def _restored(value: Any, pictures: dict[str, str]) -> Any:
    if isinstance(value, str):
        return pictures.get(value, value)
    if isinstance(value, list):
        return [_restored(item, pictures) for item in value]
    if isinstance(value, dict):
        return {pictures.get(key, key): _restored(item, pictures) for key, item in value.items()}
    return value
