"""Long work on model files over HTTP: pulls and conversions, which everybody may follow and an admin may end.

Errands of one kind wait for one another. One goes on when its client leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.streams.frames import error_frame, frame
from gguf_imagegen.api.streams.writing import Silence, send
from gguf_imagegen.vocabulary.bell import Bell
from gguf_imagegen.vocabulary.errors import Cancelled, ImagegenError, InternalError, InvalidRequest

log = logging.getLogger(__name__)
Asked = TypeVar("Asked", bound=BaseModel)
END_TIMEOUT = 30.0
"""Seconds in which a cancelled errand has ended: the hub's time-outs are shorter."""

Status = Literal["waiting", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class News:
    """The newest of one file, `view` as clients get it, in an event of this `name`.

    `done` bytes of the file are there, None for all of it.
    """

    file: str
    view: Mapping[str, Any]
    done: int | None = None
    name: str = "progress"


@dataclass
class Running:
    """One errand and the newest that it told of each file; `number` counts what it told.

    `result` are fields of its own in what clients get.
    """

    object: str
    model: str
    status: Status = "waiting"
    error: ImagegenError | None = None
    number: int = 0
    result: Mapping[str, Any] = field(default_factory=dict)
    _sizes: Mapping[str, int] = field(default_factory=dict)
    _latest: dict[str, tuple[int, News]] = field(default_factory=dict)
    _bell: Bell = field(default_factory=Bell)

    @property
    def ended(self) -> bool:
        return self.status not in ("waiting", "running")

    def plan(self, sizes: Mapping[str, int], view: Mapping[str, Any]) -> None:
        """What it will be, in bytes of each file."""
        self._sizes = sizes
        self.publish(News("", view))

    def publish(self, news: News) -> None:
        self._latest[news.file] = (self.number + 1, news)
        self.wake()

    def wake(self, status: Status | None = None, error: ImagegenError | None = None) -> None:
        """Tell all who follow; with a status, that it has changed."""
        self.number += 1
        if status is not None:
            self.status, self.error = status, error
        self._bell.ring()

    def since(self, number: int) -> list[News]:
        """What was told after this number, oldest first, of each file only the newest."""
        return [news for at, news in sorted(self._latest.values(), key=lambda one: one[0]) if at > number]

    async def more_than(self, number: int, timeout: float) -> bool:
        """Wait until there is something after this number; False if `timeout` seconds passed first."""
        return self.number > number or self.ended or await self._bell.heard(timeout)

    async def wait(self) -> None:
        while not self.ended:
            await self._bell.heard()

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    @property
    def done(self) -> int:
        """Bytes of all files that are here."""
        latest = {file: news for file, (_, news) in self._latest.items()}
        return sum(
            size if latest[file].done is None else min(latest[file].done or 0, size)
            for file, size in self._sizes.items()
            if file in latest
        )

    def view(self) -> dict[str, Any]:
        return {
            "object": self.object,
            "model": self.model,
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "files": [dict(news.view) for _, news in self._latest.values() if news.file],
            **self.result,
            **(self.error.body() if self.error else {"error": None}),
        }


class Errands:
    """The errands of one kind by the model's name, of each the newest."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._turn = asyncio.Lock()
        self._runs: dict[str, tuple[Running, Callable[[], object], asyncio.Task[None]]] = {}

    @property
    def all(self) -> list[Running]:
        """In the order of their beginning."""
        return [running for running, _, _ in self._runs.values()]

    def named(self, name: str) -> list[Running]:
        """Those of ID (in every quantisation) or ID:QUANT, those that go on last."""
        id, _, quant = name.partition(":")
        meant = (id, quant) if quant else (id,)
        found = [each for each in self.all if each.model.split(":")[: len(meant)] == list(meant)]
        return sorted(found, key=lambda running: not running.ended)

    def start(
        self, running: Running, work: Callable[[], Awaitable[None]], stop: Callable[[], None] | None = None
    ) -> Running:
        """Begin this, unless one of this model goes on: that one. `stop` ends the work with `Cancelled`."""
        found = self._runs.get(running.model)
        if found is not None and not found[0].ended:
            return found[0]
        task = asyncio.create_task(self._run(running, work))
        self._runs.pop(running.model, None)
        self._runs[running.model] = (running, stop or task.cancel, task)
        return running

    async def _run(self, running: Running, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._turn:
                running.wake("running")
                await work()
            running.wake("succeeded")
        except (Cancelled, asyncio.CancelledError) as exc:
            if not running.ended:
                error = exc if isinstance(exc, Cancelled) else Cancelled(f"the {self._kind} was cancelled")
                running.wake("cancelled", error)
        except ImagegenError as exc:
            running.wake("failed", exc)
        except Exception:  # the edge of the errand: the log has the trace
            log.exception("internal error in the %s of %s", self._kind, running.model)
            running.wake("failed", InternalError("internal error; the server's log has the details"))

    async def cancel(self, running: Running) -> None:
        """End an errand, and wait until it has ended."""
        _, stop, task = self._runs[running.model]
        stop()
        if running.status == "waiting":
            task.cancel()
            running.wake("cancelled", Cancelled(f"the {self._kind} was cancelled before it began"))
        await asyncio.wait_for(running.wait(), END_TIMEOUT)

    async def close(self) -> None:
        going = [running for running in self.all if not running.ended]
        await asyncio.gather(*map(self.cancel, going), return_exceptions=True)


def in_loop() -> Callable[..., None]:
    """What calls from a thread into the loop; nobody listens any more once that is closed."""
    loop = asyncio.get_running_loop()

    def call(act: Callable[..., None], *given: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(act, *given)

    return call


async def asked_for(request: web.Request, shape: type[Asked]) -> Asked:
    """The body as this model; InvalidRequest names the first field that is wrong."""
    try:
        return shape.model_validate(await read_body(request))
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{field}: {fault['msg']}", param=field) from None


async def followed(
    request: web.Request, running: Running, shape: type[BaseModel], *, stream: bool
) -> web.StreamResponse:
    """The answer to who began or joined it: all it tells to its end, or 202 and how far it is."""
    if stream:
        return await send(request, partial(_frames, running))
    return reply(shape, running.view(), status=202)


async def _frames(running: Running, silence: Silence) -> AsyncGenerator[bytes, None]:
    """What the errand tells to its end; a client that leaves ends only its answer."""
    seen = 0
    while not (running.ended and running.number == seen):
        if not await running.more_than(seen, silence.left):
            yield b""
            continue
        news, seen = running.since(seen), running.number
        for each in news:
            yield _frame(running, each)
    yield error_frame(running.error) if running.error else frame(running.view(), event="done")


def _frame(running: Running, news: News) -> bytes:
    overall = {"overall": {"done": running.done, "total": running.total}}
    return frame({"model": running.model, **news.view, **overall}, event=news.name)
