"""What a picture would cost: time as measured, memory as estimated, and what would do if it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf_imagegen.catalog import tiles
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.memory import Files
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.verdict import Verdict, verdict_of
from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.planning.bounds import LEAST_SIDE
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings

SMALLER = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
"""Sides that are tried, as parts of those asked for."""


@dataclass(frozen=True)
class Forecast:
    """Seconds are None where nothing was measured; `room` is None where no model of this machine is used.

    `cheaper` are the fields to send instead, where this does not fit and something does.
    """

    plan: Plan
    seconds: float | None
    load_seconds: float | None
    tiles: int
    room: Verdict | None
    cheaper: dict[str, str] | None

    @property
    def fits(self) -> bool:
        return self.room is None or self.room.fits


class Forecaster:
    """Asks the lanes and what they have done so far."""

    def __init__(self, catalog: Catalog, settings: Settings, pool: Pool, pace: Pace) -> None:
        self._catalog = catalog
        self._settings = settings
        self._pool = pool
        self._pace = pace

    def of(self, plans: Sequence[Plan]) -> list[Forecast]:
        """Reads headers, and asks GPUs: call it in a thread. Raises InvalidModelFile."""
        rooms = [self._pool.room(lane) for lane in self._pool.lanes]
        return [self._of(plan, rooms) for plan in plans]

    def _of(self, plan: Plan, rooms: Sequence[Available]) -> Forecast:
        entry, spec = plan.entry, plan.generate
        if spec is None:
            return Forecast(plan, None, 0.0, 1, None, None)
        load_seconds = 0.0 if self._pool.ready(entry) else self._pace.load_seconds(entry)
        if not rooms or not self._catalog.on_disk(entry):  # machines that have the model look for themselves
            return Forecast(plan, self._pace.job_seconds(plan), load_seconds, 1, None, None)
        files = self._catalog.checked_files(entry)
        found = [(free, verdict_of(entry, files, self._settings, free, spec.decoded)) for free in rooms]
        free, room = max(found, key=lambda each: each[1].fits)
        tiled = spec.vae_tiling or (room.tiling and self._settings.memory_check)
        return Forecast(
            plan,
            seconds=self._pace.job_seconds(plan),
            load_seconds=load_seconds,
            tiles=tiles.count_of(entry.family, spec.decoded, spec.vae_tile, spec.vae_tile_overlap)
            if tiled
            else 1,
            room=room,
            cheaper=None if room.fits else self._cheaper(plan, files, free),
        )

    def _cheaper(self, plan: Plan, files: Files, free: Available) -> dict[str, str] | None:
        """The largest smaller size of this aspect, else a smaller model."""
        for part in SMALLER:
            width, height = (
                round(side * part / LEAST_SIDE) * LEAST_SIDE for side in (plan.width, plan.height)
            )
            size = max(width, LEAST_SIDE), max(height, LEAST_SIDE)
            if verdict_of(plan.entry, files, self._settings, free, size).fits:
                return {"size": "{}x{}".format(*size)}
        model = Survey(self._catalog, self._settings, free).next_best(plan.entry)
        return {"model": model} if model else None
