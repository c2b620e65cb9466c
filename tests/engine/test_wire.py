"""Frames: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_imagegen.engine import wire
from gguf_imagegen.engine.protocol import RawImage
from gguf_imagegen.events import Done, EngineEvent, Loading, Preview, Progress

st.register_type_strategy(Path, st.text(min_size=1).map(Path))
st.register_type_strategy(float, st.floats(allow_nan=False))
EVENTS = st.one_of([st.from_type(kind) for kind in get_args(EngineEvent)])
COMMANDS = st.one_of([st.from_type(kind) for kind in get_args(wire.Command)])


def split(frame: bytes) -> tuple[bytes, bytes]:
    header_length, blob_length = wire.decode_prefix(frame[: wire.PREFIX.size])
    rest = frame[wire.PREFIX.size :]
    assert len(rest) == header_length + blob_length
    return rest[:header_length], rest[header_length:]


@given(EVENTS)
def test_an_event_survives(event: EngineEvent) -> None:
    assert wire.decode(*split(wire.encode(event))) == event


@given(COMMANDS)
def test_a_command_survives(command: wire.Command) -> None:
    assert wire.decode_command(*split(wire.encode(command))) == command


def test_pixels_are_raw_bytes_in_the_blob() -> None:
    pixels = bytes(range(12))
    header, blob = split(wire.encode(Preview(0, 1, 20, 2, 2, pixels)))
    assert blob == pixels
    assert json.loads(header)["rgb"] == [0, 12]


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_noise_is_an_error(header: bytes, blob: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.decode(header, blob)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"kind": "Nothing"},
        {"kind": "Load"},
        {"kind": "Done", "more": 1},
        {"kind": "Loading", "what": "a", "done": 1},
        {"kind": "Loading", "what": "a", "done": "1", "total": 2},
        {"kind": "Loading", "what": "a", "done": True, "total": 2},
        {"kind": "PhaseChanged", "index": 0, "phase": "sleeping"},
        {"kind": "PhaseChanged", "index": 0, "phase": ["sampling"]},
        {"kind": "Preview", "index": 0, "step": 1, "steps": 2, "width": 1, "height": 1, "rgb": [0, 4]},
        {"kind": "Preview", "index": 0, "step": 1, "steps": 2, "width": 1, "height": 1, "rgb": [-1, 1]},
        {"kind": "Preview", "index": 0, "step": 1, "steps": 2, "width": 1, "height": 1, "rgb": "AAAA"},
    ],
)
def test_a_wrong_header_is_an_error(content: object) -> None:
    with pytest.raises(wire.FrameError):
        wire.decode(json.dumps(content).encode(), b"abc")


def test_a_command_is_not_an_event() -> None:
    header, blob = split(wire.encode(Done()))
    with pytest.raises(wire.FrameError):
        wire.decode_command(header, blob)


def test_lengths_are_bounded() -> None:
    with pytest.raises(wire.FrameError):
        wire.decode_prefix(wire.PREFIX.pack(wire.MAX_HEADER + 1, 0))
    with pytest.raises(wire.FrameError):
        wire.decode_prefix(wire.PREFIX.pack(1, wire.MAX_BLOB + 1))
    with pytest.raises(wire.FrameError):
        wire.encode(Loading("x" * wire.MAX_HEADER, 0, 1))


def test_several_images_share_one_blob() -> None:
    images = (RawImage(1, 1, 1, b"a"), RawImage(1, 1, 3, b"bcd"))
    blobs = [b"before"]
    assert wire._plain(images, blobs) == [
        {"width": 1, "height": 1, "channels": 1, "data": [6, 1]},
        {"width": 1, "height": 1, "channels": 3, "data": [7, 3]},
    ]
    assert b"".join(blobs) == b"beforeabcd"


def test_a_whole_number_is_a_good_float() -> None:
    header = (
        b'{"kind": "Progress", "index": 0, "phase": "sampling", "step": 1, "steps": 2, "seconds_per_step": 1}'
    )
    assert wire.decode(header, b"") == Progress(0, "sampling", 1, 2, 1.0)
