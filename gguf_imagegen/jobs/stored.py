"""The events of a job that are stored, in a form that can be: those that change its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from msgspec import Struct

from gguf_imagegen.jobs.job import Ended, ImageReady, JobEvent, Started
from gguf_imagegen.vocabulary import errors
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidImage
from gguf_imagegen.vocabulary.events import Notice, Timings


class StoredStart(Struct, frozen=True, tag="started"):
    lane: str = ""


class StoredImage(Struct, frozen=True, tag="image"):
    index: int
    seed: int
    name: str
    width: int
    height: int
    timings: Timings


class StoredNotice(Struct, frozen=True, tag="notice"):
    message: str


class StoredEnd(Struct, frozen=True, tag="ended"):
    """`kind` is the class of the error, empty after a success."""

    kind: str = ""
    message: str = ""
    param: str | None = None
    retry_after: int | None = None


class StoredItem(Struct, frozen=True, tag="item"):
    """An item of a set that could not be queued, and why."""

    index: int
    end: StoredEnd


OfJob: TypeAlias = StoredStart | StoredImage | StoredNotice | StoredEnd
Stored: TypeAlias = OfJob | StoredItem


def stored(event: JobEvent) -> OfJob | None:
    """None for events that are not stored."""
    match event:
        case Started():
            return StoredStart(event.lane)
        case ImageReady():
            return StoredImage(event.index, event.seed, event.name, event.width, event.height, event.timings)
        case Notice():
            return StoredNotice(event.message)
        case Ended(error=None):
            return StoredEnd()
        case Ended(error=error) if error is not None:
            return stored_error(error)
        case _:
            return None


def stored_error(error: ImagegenError) -> StoredEnd:
    message = error.reason if isinstance(error, InvalidImage) else error.message
    return StoredEnd(type(error).__name__, message, error.param, error.retry_after)


def restored(event: OfJob) -> JobEvent:
    match event:
        case StoredStart():
            return Started(event.lane)
        case StoredImage():
            return ImageReady(event.index, event.seed, event.name, event.width, event.height, event.timings)
        case StoredNotice():
            return Notice(event.message)
        case StoredEnd(kind=""):
            return Ended(None)
        case StoredEnd():
            return Ended(restored_error(event))


def restored_error(event: StoredEnd) -> ImagegenError:
    kinds = {kind.__name__: kind for kind in _kinds(ImagegenError)}
    kind = kinds.get(event.kind, errors.InternalError)
    error = kind(event.message, param=event.param)
    error.retry_after = event.retry_after
    return error


def _kinds(kind: type[ImagegenError]) -> Iterator[type[ImagegenError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)
