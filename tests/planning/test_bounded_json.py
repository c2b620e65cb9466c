"""JSON is bounded before a parser sees it, and means then what it means to any parser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_imagegen.planning import bounded_json
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidRequest, PayloadTooLarge

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)
PICTURE = "iVBORw0KGgo+/-_=" * 20_000
"""320 kB."""


def loads(data: bytes) -> Any:
    return bounded_json.loads(data, "it")


@given(JSON, st.booleans())
def test_values_are_those_of_any_parser(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1)
    assert loads(text.encode()) == value


@given(st.binary(max_size=300) | st.text(alphabet='"\\{}[],:1a \n').map(str.encode))
def test_rubbish_is_told_as_any_parser_tells_it(data: bytes) -> None:
    try:
        expected = json.loads(data.decode())
    except (ValueError, RecursionError):
        notes: list[str] = []
        try:
            bounded_json.loads(data, "it", notes=notes)
        except (ValueError, ImagegenError):
            return
        assert notes, "what is no JSON is forgiven with a note"
    else:
        assert loads(data) == expected


@pytest.mark.parametrize(
    "text",
    [
        PICTURE,
        f"data:image/png;base64,{PICTURE}",
        "".join(f"{PICTURE[:76]}\r\n" for _ in range(5000)),
        PICTURE[:70_000] + "\\",
        PICTURE[:70_000] + '"' + PICTURE[:70_000],
        "é" * 50_000,
        '\\"' * 50_000,
    ],
    ids=["base64", "data URL", "lines", "backslash", "quote", "words", "escapes"],
)
@pytest.mark.parametrize("slashes", ["/", "\\/"])
def test_long_strings(text: str, slashes: str) -> None:
    """Pictures and long texts arrive as they were sent, wherever they stand and however they are escaped."""
    value = {"image": [text, {"url": text}], text: "a"}
    data = json.dumps(value, ensure_ascii=False).replace("/", slashes).encode()
    assert loads(data) == value


def test_pictures_may_be_large() -> None:
    """Eight megabytes of base64 are no text; one and a half of prose are too much."""
    picture = "aGVsbG8v" * (1 << 20)
    assert loads(json.dumps({"a": picture, "b": [picture]}).encode()) == {"a": picture, "b": [picture]}
    with pytest.raises(PayloadTooLarge, match="it holds more than 1 MiB of text"):
        loads(json.dumps({"a": "a cat! " * 220_000}).encode())


HOSTILE = {
    "lists": b"[" + b"[]," * 2_000_000 + b"0]",
    "objects": b"[" + b"{}," * 2_000_000 + b"0]",
    "numbers": b"[" + b"1e9," * 2_000_000 + b"0]",
    "keys": b"{" + b'"k":1,' * 100_000 + b'"k":1}',
    "strings without commas": b'""' * 400_000,
    "blanks": b"{" + b" " * 6_000_000 + b"}",
    "digits": b"[" + b"1" * 6_000_000 + b"]",
    "quotes": b'["' + b'\\"' * 3_000_000 + b'"]',
    "escapes": b'["' + b"\\u00e9" * 1_000_000 + b'"]',
    "no end": b'["' + b"a cat! " * 1_000_000,
    "deep": b"[" * 5_000 + b"]" * 5_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_parser_never_sees_what_is_hostile(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan refuses it: no parser, which would hold the interpreter, is called."""

    def parser(*_: object) -> None:
        raise AssertionError("was called")

    monkeypatch.setattr(json, "loads", parser)
    with pytest.raises((PayloadTooLarge, InvalidRequest)):
        loads(HOSTILE[kind])


def test_what_is_left_for_the_parser_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a request with megabytes of pictures the parser gets what stands around them."""
    seen: list[int] = []
    parse = json.loads

    def parser(text: str) -> Any:
        seen.append(len(text))
        return parse(text)

    monkeypatch.setattr(json, "loads", parser)
    assert loads(json.dumps({"image": [PICTURE] * 16}).encode()) == {"image": [PICTURE] * 16}
    assert seen[0] < 2000


def test_bounds_are_told() -> None:
    """Exactly the allowed depth and number of values pass."""
    assert loads(b"[" * 32 + b"]" * 32)
    with pytest.raises(InvalidRequest, match="more than 32 levels"):
        loads(b"[" * 33 + b"]" * 33)
    assert len(loads(b"[" + b"1," * 9_000 + b"1]")) == 9_001
    with pytest.raises(InvalidRequest, match="more than 10000 values"):
        loads(b"[" + b"1," * 10_000 + b"1]")


def test_no_text_is_taken_for_a_picture() -> None:
    """The names of cut pictures cannot be guessed."""
    value = {"image": PICTURE, "prompt": "0" * 32 + ":0"}
    assert loads(json.dumps(value).encode()) == value


# -- what printed examples have -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1,}', {"a": 1}),
        ("[1, 2 ,\n ]", [1, 2]),
        ('{"a": [1,], "b": {"c": ",}",},}', {"a": [1], "b": {"c": ",}"}}),
        ('// first\n{"a": 1}', {"a": 1}),
        ('{"a": 1 // the "first", [don\'t\n, "b": "http://c,]"} // end', {"a": 1, "b": "http://c,]"}),
        ('{"a": "\\\\", // x\n}', {"a": "\\"}),
        (f'{{"a": "{PICTURE}", // a picture\n}}', {"a": PICTURE}),
    ],
)
def test_commas_and_comments_are_forgiven(text: str, value: Any) -> None:
    """With one note; what stands inside strings stays as it is."""
    notes: list[str] = []
    assert bounded_json.loads(text.encode(), "it", notes=notes) == value
    assert len(notes) == 1
    assert notes[0].startswith("it is no strict JSON: ")


def test_strict_json_has_no_note() -> None:
    notes: list[str] = []
    assert bounded_json.loads(b'{"a": "http://b,]", "c": [1, 2]}', "it", notes=notes)
    assert notes == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"[" + b"//\n" * 100_000 + b"1]", InvalidRequest),
        (b"[1] //" + b"x" * (2 << 20), PayloadTooLarge),
        (b"//" + b" " * (2 << 20) + b"\n[1]", PayloadTooLarge),
        (b"[1," + b"," * 20_000 + b"]", InvalidRequest),
    ],
)
def test_comments_and_commas_are_bounded(data: bytes, kind: type[ImagegenError]) -> None:
    """They cost what any text costs."""
    with pytest.raises(kind):
        loads(data)
