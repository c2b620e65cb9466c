"""What server, bridge and lanes of a cluster say to each other: msgpack of the structs below.

Tasks and events inside are frames of `engines.wire`, without their lengths. Whoever changes any of this
raises `WIRE`: a node that speaks another version is refused in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from gguf_imagegen.engines import wire
from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.vocabulary import errors
from gguf_imagegen.vocabulary.engine import LoadSpec, Task
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidImage
from gguf_imagegen.vocabulary.events import EngineEvent, Made

WIRE: Final = 4

# -- what a node is -----------------------------------------------------------------------------------


class FileState(Struct, frozen=True):
    """A file of a node; the hash is None where nobody has looked."""

    size: int
    sha256: str | None = None


class OfferedDevice(Struct, frozen=True):
    """A device as `machine.devices` has it; `ram` and `vram` are bytes in which nothing is."""

    name: str
    threads: int
    gpu: str | None
    ram: int
    vram: int | None


class Offer(Struct, frozen=True):
    """What a node has. Of an offer of another `wire` version only that, `version` and `name` are read."""

    wire: int
    version: str
    name: str
    build: str = ""
    devices: Sequence[OfferedDevice] = ()
    pulls: bool = False
    cpu: str = ""


class Stock(Struct, frozen=True, tag=True):
    """What lies in a node's folders, by relative path; `leaving`: the node is about to stop.

    `addons` are named `lora/NAME` and so on (`pool.ray.files`).
    """

    models: Mapping[str, FileState]
    addons: Mapping[str, int]
    leaving: bool = False


# -- to a lane ----------------------------------------------------------------------------------------


class Load(Struct, frozen=True, tag=True):
    """Load a model into engine number `engine`, whose events are those of `run`.

    `entry` is the catalog's as JSON, `settings` what this server says of how models are loaded, `files` what
    is known of the files and `names` what they are called (`pool.ray.files`), by role.
    """

    engine: int
    run: int
    entry: bytes
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    files: Mapping[str, FileState]


class Do(Struct, frozen=True, tag=True):
    """A task; with `finish`, which goes with `Generate`, its pictures and previews come as files."""

    engine: int
    run: int
    task: bytes
    finish: Finish | None


class Enlarge(Struct, frozen=True, tag=True):
    """Make the picture of a `Made` larger, as `finish` says; it comes as a file."""

    engine: int
    run: int
    made: bytes
    finish: Finish


class Close(Struct, frozen=True, tag=True):
    """End this engine, whatever it does."""

    engine: int


Order: TypeAlias = Load | Do | Enlarge | Close

# -- from a lane --------------------------------------------------------------------------------------


class Told(Struct, frozen=True, tag=True):
    """An event of a run."""

    run: int
    event: bytes


class Over(Struct, frozen=True, tag=True):
    """The end of a run: `kind` is the class of the error, empty after a success."""

    run: int
    kind: str = ""
    message: str = ""
    param: str | None = None


class Closed(Struct, frozen=True, tag=True):
    """This engine is gone."""

    engine: int


class Beat(Struct, frozen=True, tag=True):
    """The lane lives."""


Word: TypeAlias = Told | Over | Closed | Beat | Stock

# -- between server and bridge ------------------------------------------------------------------------


class ToLane(Struct, frozen=True, tag=True):
    """An order for a lane, encoded."""

    lane: str
    order: bytes


class Drop(Struct, frozen=True, tag=True):
    """Give this lane up, and make another on its device."""

    lane: str


class Release(Struct, frozen=True, tag=True):
    """End a node's lanes, which have no work; make none there until it comes again."""

    node: str


Wish: TypeAlias = ToLane | Drop | Release


class Joined(Struct, frozen=True, tag=True):
    """The bridge is in the cluster, and its head answers."""

    address: str


class Away(Struct, frozen=True, tag=True):
    """The head does not answer; lanes go on."""

    why: str


class NodeSeen(Struct, frozen=True, tag=True):
    """A node with devices, and its offer as JSON; or why it is of no use."""

    node: str
    host: str
    offer: bytes
    why: str = ""


class NodeGone(Struct, frozen=True, tag=True):
    node: str
    why: str


class LaneUp(Struct, frozen=True, tag=True):
    """The actor for device number `device` of a node is there."""

    lane: str
    node: str
    device: int


class LaneDown(Struct, frozen=True, tag=True):
    lane: str
    why: str


class FromLane(Struct, frozen=True, tag=True):
    """A batch of a lane, encoded."""

    lane: str
    batch: bytes


Report: TypeAlias = Joined | Away | NodeSeen | NodeGone | LaneUp | LaneDown | FromLane

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=wire.plain)
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order, dec_hook=wire.typed)
_WORDS: Final[msgspec.msgpack.Decoder[list[Word]]] = msgspec.msgpack.Decoder(list[Word])
_WISHES: Final[msgspec.msgpack.Decoder[list[Wish]]] = msgspec.msgpack.Decoder(list[Wish])
_REPORTS: Final[msgspec.msgpack.Decoder[list[Report]]] = msgspec.msgpack.Decoder(list[Report])


def encode(message: Order | Sequence[Word]) -> bytes:
    return _ENCODER.encode(message)


def framed(messages: Sequence[Wish] | Sequence[Report]) -> bytes:
    """One frame on the pipe between server and bridge, with its length before it."""
    body = _ENCODER.encode(messages)
    return wire.PREFIX.pack(len(body)) + body


def order_of(data: bytes) -> Order:
    return _ORDERS.decode(data)


def words_of(batch: bytes) -> list[Word]:
    return _WORDS.decode(batch)


def wishes_of(body: bytes) -> list[Wish]:
    return _WISHES.decode(body)


def reports_of(body: bytes) -> list[Report]:
    return _REPORTS.decode(body)


def packed(message: EngineEvent | Task) -> bytes:
    """An event or a task as it lies inside another message."""
    return wire.encode(message)[wire.PREFIX.size :]


def task_of(data: bytes) -> Task:
    command = wire.decode_command(data)
    if isinstance(command, LoadSpec):
        raise wire.FrameError("a load where a task was expected")
    return command


def made_of(data: bytes) -> Made:
    event = wire.decode(data)
    if not isinstance(event, Made):
        raise wire.FrameError("another event where a picture was expected")
    return event


def over(run: int, error: ImagegenError | None) -> Over:
    if error is None:
        return Over(run)
    message = error.reason if isinstance(error, InvalidImage) else error.message
    return Over(run, type(error).__name__, message, error.param)


def error_of(end: Over) -> ImagegenError | None:
    """What a lane's run ended with; a class of a later version is an internal error."""
    if not end.kind:
        return None
    kind = getattr(errors, end.kind, errors.InternalError)
    if not (isinstance(kind, type) and issubclass(kind, ImagegenError)):
        kind = errors.InternalError
    return kind(end.message, param=end.param)
