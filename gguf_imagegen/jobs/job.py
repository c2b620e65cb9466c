"""A job is an append-only list of events; its state, progress and result follow from them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

from gguf_imagegen.jobs.ids import draw_id
from gguf_imagegen.jobs.results import draw_names
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.planning.warnings import few
from gguf_imagegen.vocabulary.bell import Bell
from gguf_imagegen.vocabulary.callers import Sender
from gguf_imagegen.vocabulary.errors import Cancelled, ImagegenError
from gguf_imagegen.vocabulary.events import Loaded, Loading, Notice, PhaseChanged, Progress, Timings

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Queued:
    """`position` is the place in the queue (1 = next); `eta` is the wait in seconds, if known.

    The history has the place at the beginning; where a job stands now is read from the scheduler.
    """

    position: int
    eta: float | None


@dataclass(frozen=True)
class Started:
    """The job left the queue, for this lane; it is `Queued` again if its model has no room there yet."""

    lane: str = ""


@dataclass(frozen=True)
class PreviewReady:
    """A small encoded picture of image `index` after `step` of `steps`; empty once it was dropped."""

    index: int
    step: int
    steps: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class ImageReady:
    """Image `index` is encoded and stored under `name`."""

    index: int
    seed: int
    name: str
    width: int
    height: int
    timings: Timings


@dataclass(frozen=True)
class Ended:
    """The last event of every job; `error` None means success."""

    error: ImagegenError | None


@dataclass(frozen=True)
class Hook:
    """Where the end of a job is told, and what addresses of this server begin with there."""

    url: str
    base: str


PREVIEW_TTL = 60.0
"""Seconds after a job's end for which its previews can be replayed."""
MAX_ENDED = 1000
"""Ended jobs that can be looked at; beyond, the oldest are forgotten before their time."""

JobEvent: TypeAlias = (
    Queued | Started | Loading | Loaded | PhaseChanged | Progress | PreviewReady | ImageReady | Notice | Ended
)


class Observer(Protocol):
    """Sees every event of every job after it was published."""

    def __call__(self, job: Job, event: JobEvent) -> None: ...


class Store(Protocol):
    """Stores an event before it is published."""

    async def __call__(self, job: Job, event: JobEvent) -> None: ...


class Job:
    """One plan on its way to pictures. Only the scheduler publishes; everybody may read and wait.

    What is read often is kept beside the events, which can be thousands. A job that has ended keeps what
    describes it, and neither pixels nor the frames of an error's trace. `names` are those of its pictures,
    drawn before they are made; a `lasting` one goes on whether anybody waits for it or not. One that an
    earlier run of the server took has the `id` and time from there, and `first_id` for its next event.
    """

    def __init__(
        self,
        plan: Plan,
        sender: Sender | None = None,
        *,
        lasting: bool = False,
        hook: Hook | None = None,
        id: str = "",
        created: float | None = None,
        names: Sequence[str] = (),
        first_id: int = 0,
        parent: str | None = None,
    ) -> None:
        self.id = id or draw_id("job")
        self.plan = plan
        self.sender = sender or Sender()
        self.lasting = lasting
        self.hook = hook
        self.parent = parent
        """The id of the set that it is an item of."""
        self.held = False
        """Whether it is not to be forgotten, because its set is not."""
        self.created = time.time() if created is None else created
        self.since = self.created
        """What counts as its age in the queue: jobs that change places change this."""
        self.priority = plan.priority
        """Changes while it waits, by the scheduler alone."""
        self.names = names or draw_names(plan.n, plan.output_format)
        self.complete: Callable[[], Awaitable[Plan]] | None = None
        """Gives the plan with its pixels, where it was read from the journal without them."""
        self.missed = False
        """Whether its client went with an earlier run of the server and has not been back."""
        self.lost = 0
        """How often it lost its lane: the engine was killed under it, by no fault of its own."""
        self.build = ""
        """Of the engine that worked on it last (`pool.base_lane`)."""
        self.events: list[JobEvent] = []
        self.ids: list[int] = []
        """Of the events; they rise, and none is used twice, not even over restarts of the server."""
        self.times: list[float] = []
        self.images: list[ImageReady] = []
        self.started_at: float | None = None
        self.lane: str | None = None
        """The name of the lane that works on it or did."""
        self.last_progress: Progress | None = None
        self.last_work: Progress | Loading | None = None
        self.last_preview: PreviewReady | None = None
        self.cancel_requested: ImagegenError | None = None
        """What it is to end with, once somebody wants it ended."""
        self._first_id = first_id
        self._notices: list[str] = []
        self._bell = Bell()

    def publish(self, event: JobEvent) -> None:
        if isinstance(event, Ended):
            event = Ended(event.error and event.error.bare())
            self.plan = self.plan.without_pixels()
        self._append(event, self.next_id, time.time())
        self._bell.ring()

    def restore(self, past: Iterable[tuple[int, float, JobEvent]]) -> None:
        """Take over what happened in earlier runs of the server: ids, times and events."""
        for id, at, event in past:
            self._append(event, id, at)
        if self.ended:
            self.plan = self.plan.without_pixels()

    @property
    def next_id(self) -> int:
        """The id of the event that is published next."""
        return max(self._first_id, self.ids[-1] + 1 if self.ids else 0)

    def after(self, id: int) -> int:
        """The place among the events of the first one that comes after the one with this id."""
        return bisect_right(self.ids, id)

    def _append(self, event: JobEvent, id: int, at: float) -> None:
        self.events.append(event)
        self.ids.append(id)
        self.times.append(at)
        self._take_note(event)

    def _take_note(self, event: JobEvent) -> None:
        match event:
            case Queued():
                self.started_at = self.lane = self.last_progress = self.last_work = None
            case Started():
                self.started_at, self.lane = self.times[-1], event.lane
            case Progress():
                self.last_progress = self.last_work = event
            case Loading():
                self.last_work = event
            case PreviewReady():
                self.last_preview = event
            case ImageReady():
                self.images.append(event)
            case Notice():
                self._notices.append(event.message)

    def drop_previews(self) -> None:
        """Free the pictures of an ended job's previews; the events stay, so that replay keeps its numbers."""
        if self.last_preview is not None:
            self.events = [replace(e, data=b"") if isinstance(e, PreviewReady) else e for e in self.events]
            self.last_preview = None

    async def more_than(self, count: int, timeout: float | None = None) -> bool:
        """Wait until there are more than `count` events; False if `timeout` seconds passed first."""
        while len(self.events) <= count:
            if self.ended or not await self._bell.heard(timeout):
                return False
        return True

    async def wait(self) -> None:
        """Wait for the end; bounded because every job ends (load and stall time-outs, drain)."""
        while not self.ended:
            await self._bell.heard()

    @property
    def missing(self) -> int:
        """The index of the first picture that is not made yet; they are made in their order."""
        return len(self.images)

    @property
    def caller(self) -> str:
        """The name of the one whose job it is."""
        return self.sender.caller.name

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Ended)

    @property
    def error(self) -> ImagegenError | None:
        last = self.events[-1] if self.events else None
        return last.error if isinstance(last, Ended) else None

    @property
    def ended_at(self) -> float | None:
        return self.times[-1] if self.ended else None

    @property
    def status(self) -> Status:
        if not self.ended:
            return "queued" if self.started_at is None else "running"
        return status_of(Ended(self.error))

    @property
    def warnings(self) -> list[str]:
        """What the request's sender should know, and what the engine said; at most `few` of each."""
        return [*self.plan.warnings, *few(self._notices)]

    @property
    def progress(self) -> float:
        """Per cent of the whole job, 100 only when it succeeded."""
        if self.status == "succeeded":
            return 100.0
        last = self.last_progress
        done = max(len(self.images), last.index if last else 0)  # several may be decoded at the end
        part = image_fraction(last, self.plan) if last and last.index >= done else 0.0
        return min(99.0, 100 * (done + part) / self.plan.n)


def status_of(end: Ended) -> Literal["succeeded", "failed", "cancelled"]:
    if end.error is None:
        return "succeeded"
    return "cancelled" if isinstance(end.error, Cancelled) else "failed"


def image_fraction(progress: Progress, plan: Plan) -> float:
    """How much of one image's denoising is done, 0 to 1; with a second pass each pass is half."""
    if plan.generate is None:
        return progress.step / progress.steps if progress.phase == "upscaling" else 0.0
    if progress.phase not in ("sampling", "hires") or not progress.steps:
        return 1.0 if progress.phase in ("decoding", "upscaling") else 0.0
    part = min(1.0, progress.step / progress.steps)
    if plan.generate.hires is None:
        return part
    return part / 2 if progress.phase == "sampling" else 0.5 + part / 2


def forget_old(jobs: dict[str, Job], ttl: float) -> None:
    """Forget the jobs that ended more than `ttl` seconds ago, and pictures of steps before."""
    now = time.time()
    ended = [job for job in jobs.values() if job.ended]
    for newer, job in enumerate(job for job in reversed(ended) if not job.held):
        if now - job.times[-1] > ttl or newer >= MAX_ENDED:
            del jobs[job.id]
    for job in ended:
        if now - job.times[-1] > PREVIEW_TTL:
            job.drop_previews()
