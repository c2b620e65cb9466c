"""Frames: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_imagegen.engines import wire
from gguf_imagegen.vocabulary import engine, events
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Preview, Progress

st.register_type_strategy(Path, st.text(min_size=1).map(Path))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))


def messages(kind: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Every field is given: for Hypothesis, msgspec's mark for a default that is made anew is a value."""
    return st.builds(kind, **{field.name: st.from_type(field.type) for field in msgspec.structs.fields(kind)})


for struct in (*vars(engine).values(), *vars(events).values()):
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
        st.register_type_strategy(struct, messages)
EVENTS = st.one_of([st.from_type(kind) for kind in get_args(EngineEvent)])
COMMANDS = st.one_of([st.from_type(kind) for kind in get_args(wire.Command)])


def message_of(frame: bytes) -> bytes:
    length = wire.decode_prefix(frame[: wire.PREFIX.size])
    message = frame[wire.PREFIX.size :]
    assert len(message) == length
    return message


@given(EVENTS)
def test_an_event_survives(event: EngineEvent) -> None:
    assert wire.decode(message_of(wire.encode(event))) == event


@given(COMMANDS)
def test_a_command_survives(command: wire.Command) -> None:
    assert wire.decode_command(message_of(wire.encode(command))) == command


def test_pixels_are_raw_bytes() -> None:
    pixels = bytes(range(12))
    assert pixels in wire.encode(Preview(0, 1, 20, RawImage(2, 2, 3, pixels)))


@given(st.binary(max_size=50))
def test_noise_is_an_error(message: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.decode(message)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"type": "Nothing"},
        {"type": "Loading", "what": "a", "done": 1},
        {"type": "Loading", "what": "a", "done": "1", "total": 2},
        {"type": "Loading", "what": "a", "done": True, "total": 2},
        {"type": "PhaseChanged", "index": 0, "phase": "sleeping"},
        {"type": "PhaseChanged", "index": 0, "phase": ["sampling"]},
        {"type": "Preview", "index": 0, "step": 1, "steps": 2, "picture": None},
        {"type": "Preview", "index": 0, "step": 1, "steps": 2, "picture": {"type": "RawImage", "width": 1}},
    ],
)
def test_a_wrong_message_is_an_error(content: object) -> None:
    with pytest.raises(wire.FrameError):
        wire.decode(msgspec.msgpack.encode(content))


def test_a_command_is_not_an_event() -> None:
    with pytest.raises(wire.FrameError):
        wire.decode_command(message_of(wire.encode(Done())))


def test_lengths_are_bounded() -> None:
    with pytest.raises(wire.FrameError):
        wire.decode_prefix(wire.PREFIX.pack(wire.MAX_FRAME + 1))


def test_a_whole_number_is_a_good_float() -> None:
    message = {
        "type": "Progress",
        "index": 0,
        "phase": "sampling",
        "step": 1,
        "steps": 2,
        "seconds_per_step": 1,
    }
    assert wire.decode(msgspec.msgpack.encode(message)) == Progress(0, "sampling", 1, 2, 1.0)


def test_a_picture_is_not_printed_with_its_pixels() -> None:
    assert repr(RawImage(2, 1, 3, bytes(6))) == "RawImage(2x1x3)"
