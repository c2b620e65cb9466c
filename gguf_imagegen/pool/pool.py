"""The pool: all lanes, those of this machine and of a cluster, and what to ask of them together."""

from __future__ import annotations

import asyncio
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.load_options import OpenOptions
from gguf_imagegen.machine import memory
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available, available
from gguf_imagegen.pool.base_lane import BaseLane
from gguf_imagegen.pool.failures import Failures
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.pool.needs import Files
from gguf_imagegen.pool.options import Options
from gguf_imagegen.pool.placement import LaneView
from gguf_imagegen.pool.ray.files import addon_name, flag_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.errors import (
    EnginePaused,
    ImagegenError,
    MissingComponent,
    ModelNotDownloaded,
)
from gguf_imagegen.vocabulary.events import Loading
from gguf_imagegen.vocabulary.waits import USUAL, Waits

MOST_NAMED = 5
"""Machines that a message names."""
MOST_TILES = 10_000
"""Sizes of pictures for which it is remembered whether they are decoded in tiles."""


class Pool:
    """A lane for each device of this machine; `make_engine` gives an engine for one, not started yet.

    Lanes of other machines come and go.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        make_engine: Callable[[Device], Engine],
        devices: Sequence[Device],
        free: Callable[[Device], Available] | None = None,
        whole: Callable[[Device], Available] | None = None,
        *,
        waits: Waits = USUAL,
    ) -> None:
        self.ended: Callable[[str], None] = lambda why: None
        """Called with the reason when an engine has ended."""
        self.changed: Callable[[], None] = lambda: None
        """Called when a lane has come or gone, or may take other work than before."""
        self.failures = Failures(waits.failed_load)
        self._refused: dict[str, set[str]] = defaultdict(set)
        self._catalog, self._tiles = catalog, dict[tuple[str, int, int], bool]()
        if settings.cluster:  # a tuning is one machine's, and may change pixels
            settings = settings.model_copy(update={"tuning": False})
        self._settings = settings = _alike(settings, devices)
        self._free = free or _free
        turn = asyncio.Lock()
        self._far: list[BaseLane] = []
        self.own: Sequence[Lane] = tuple(
            Lane(
                catalog, settings, functools.partial(make_engine, device), device,
                free and functools.partial(free, device), whole and functools.partial(whole, device),
                turn=turn, failures=self.failures, beside=lambda: self.own,
                elsewhere=lambda: bool(self._far), waits=waits,
            )
            for device in devices
        )  # fmt: skip
        catalog.elsewhere, catalog.awaits = self._elsewhere, lambda: self.spreads and not self._far
        for lane in self.own:
            lane.ended = self._engine_ended

    @property
    def lanes(self) -> Sequence[BaseLane]:
        """This machine's first."""
        return (*self.own, *self._far)

    def lane(self, name: str) -> BaseLane | None:
        """None for one that has gone."""
        return next((lane for lane in self.lanes if lane.name == name), None)

    def add(self, lane: BaseLane) -> None:
        """A lane of another machine, whose name no other one has."""
        lane.ended = self._engine_ended
        self._far.append(lane)
        self._tiles.clear()
        self.memory_changed()

    def remove(self, lane: BaseLane) -> None:
        """It takes no more work."""
        self._far.remove(lane)
        self._refused.pop(lane.name, None)
        self.memory_changed()

    @property
    def device(self) -> Device:
        """Of this machine, for work that is no lane's."""
        return self.own[0].device if self.own else Device()

    @property
    def spreads(self) -> bool:
        """Whether there may be lanes of other machines, which have other files."""
        return self._settings.cluster is not None

    @property
    def kinds(self) -> Sequence[str]:
        """Of the devices of all lanes, one each."""
        return [lane.device.kind for lane in self.lanes] or ["auto"]

    def _elsewhere(self, entry: Entry) -> bool:
        return any(lane.has(entry) or lane.pulls(entry) for lane in self._far)

    # -- what is in memory ----------------------------------------------------------------------------

    @property
    def entries(self) -> list[Entry]:
        """The loaded models, the most recently used first, each once."""
        models = sorted((m for lane in self.lanes for m in lane.models), key=lambda m: m.used, reverse=True)
        return list({model.entry.name: model.entry for model in models}.values())

    @property
    def present(self) -> bool:
        return any(lane.present for lane in self.lanes)

    @property
    def backend(self) -> str | None:
        """What the engine used last computes on."""
        return self._used_last.backend if self._used_last else None

    @property
    def kernels(self) -> str | None:
        """Ours that it has in use on the CPU, see `Lane.kernels`."""
        return self._used_last.kernels if self._used_last else None

    @property
    def _used_last(self) -> BaseLane | None:
        return max(self.lanes, key=lambda lane: lane.used if lane.models else -1.0, default=None)

    @property
    def loading(self) -> Loading | None:
        """How far one of the loads is."""
        return next((lane.loading for lane in self.lanes if lane.loading is not None), None)

    def holds(self, entry: Entry) -> bool:
        return any(lane.holds(entry) for lane in self.lanes)

    def ready(self, entry: Entry | None) -> bool:
        """Whether an engine lives that has this model as it is wanted; None: any engine."""
        return any(lane.ready(entry) for lane in self.lanes)

    def loads(self, entry: Entry) -> bool:
        """Whether this model is being loaded just now."""
        return any(lane.loads(entry) for lane in self.lanes)

    def tuned(self, entry: Entry) -> Options | None:
        """What a tuning has changed in a loaded model; None if it is not loaded, or has no tuning."""
        return next((options for lane in self.lanes if (options := lane.tuned(entry))), None)

    # -- what went wrong ------------------------------------------------------------------------------

    @property
    def error(self) -> ImagegenError | None:
        """Why the last load failed."""
        return self.failures.last

    @property
    def errors(self) -> dict[str, ImagegenError]:
        """By name of a model: why its last load failed."""
        return self.failures.by_model

    def forget_failure(self, entry: Entry) -> None:
        """Somebody asked for this model by hand: try again at once."""
        self.failures.forget(entry)

    @property
    def pause(self) -> float:
        """Seconds until some lane may start an engine; 0 if one may now, or there is none."""
        return min((lane.pause for lane in self.lanes), default=0.0)

    def check_pause(self, entry: Entry | None) -> None:
        """Raise EnginePaused if no lane may begin a job for this model, None for work without one."""
        wait = math.ceil(self.pause)
        if wait and not self.ready(entry):
            raise EnginePaused(
                f"the engine crashed again and again; it is given a pause, try again in {wait} s",
                retry_after=wait,
            )

    # -- equal pixels on every lane -------------------------------------------------------------------

    def alike(self, entry: Entry, spec: Generate) -> Generate:
        """The same work with what changes pixels decided for all lanes: decoded in tiles if one must.

        Reads headers, and asks GPUs, when a model or a size is new: call it in a thread.
        """
        if spec.vae_tiling or not self._settings.memory_check:
            return spec
        key = (key_of(entry), *spec.decoded)
        found = self._tiles.get(key)
        if found is None:
            found = self._must_tile(entry, *spec.decoded)
            if all(lane.on_gpu is not None for lane in self.lanes) and len(self._tiles) < MOST_TILES:
                self._tiles[key] = found
        return replace(spec, vae_tiling=found)

    def require(self, entry: Entry | None, addons: Sequence[Path]) -> None:
        """Raise MissingComponent where machines have the model, and none of them what a job names besides."""
        fault = self.lacking(entry, addons) if self.spreads else None
        if isinstance(fault, MissingComponent):
            raise fault

    def lacking(self, entry: Entry | None, addons: Sequence[Path]) -> ImagegenError | None:
        """What all lanes lack of a job's files: add-ons where its model is, or that; None if one has all."""
        if any(lane.has(entry, addons) or lane.pulls(entry, addons) for lane in self.lanes):
            return None
        control = entry.files.get("control_net") if entry else None
        bare = entry.without("control_net") if entry else None
        able = [lane for lane in self.lanes if lane.has(bare) or lane.pulls(bare)]
        if not able:
            return ModelNotDownloaded(
                f"no machine of the cluster ({_machines(self.lanes)}) has the model"
                f" {entry.id if entry else ''!r}; copy its files to one of them",
                param="model",
            )
        named = (*addons, *([control] if control else []))
        nowhere = [path for path in named if not any(lane.has(None, (path,)) for lane in able)]
        flags = {path: flag_of(addon_name(path, self._settings)) for path in nowhere or named}
        files = ", ".join(f"{path.name} in its {flag}" for path, flag in flags.items())
        return MissingComponent(
            f"no machine of the cluster that has the model ({_machines(able)}) has the server's {files};"
            " copy what is missing to one of them"
        )

    def addons_elsewhere(self, flag: str) -> frozenset[str]:
        """As `BaseLane.addons`, of all other machines."""
        return frozenset[str]().union(*(lane.addons(flag) for lane in self._far))

    def where(self, flag: str, name: str) -> str:
        """Words about an add-on that this machine lacks; empty if no other one has it."""
        having = [lane for lane in self._far if name.casefold() in lane.addons(flag)]
        if not having:
            return ""
        return f"it is in the {flag} of {_machines(having)}, and must be in that of the server, too"

    def _must_tile(self, entry: Entry, width: int, height: int) -> bool:
        try:
            headers = self._catalog.checked_files(entry)
        except ImagegenError:  # the load will tell
            return False
        return any(lane.must_tile(entry, headers, width, height) for lane in self.lanes)

    def room(self, lane: BaseLane) -> Available:
        """Memory that a lane has for a model, if all loaded ones made room.

        Asks GPUs: call it in a thread.
        """
        if lane not in self.own:
            return lane.free()
        free = self._free(lane.device)
        near = [each for each in self.own if each.device.gpu == lane.device.gpu]
        held = sum(self._catalog.size_on_disk(model.entry) for each in near for model in each.models)
        if free.vram is not None and lane.on_gpu:
            return Available(free.ram, free.vram + held)
        return Available(min(free.ram + held, memory.whole(gpu=None).ram), free.vram)

    # -- placing --------------------------------------------------------------------------------------

    def views(self, busy: Iterable[BaseLane], wants: Mapping[str, Files] | None = None) -> list[LaneView]:
        """The lanes as placement sees them; `busy` are those that have work.

        `wants` are the files that waiting jobs need, by `Waiting.needs`.
        """
        occupied = {lane.name for lane in busy}
        lacks = self._lacks(wants or {})
        return [
            LaneView(
                lane.name,
                idle=lane.name not in occupied and not lane.leaving,
                holds=_held(lane) - self._refused[lane.name],
                paused=lane.pause > 0,
                refuses=frozenset(self._refused[lane.name]),
                lacks=lacks.get(lane.name, frozenset()),
                loaded=len(lane.models),
                used=lane.used,
            )
            for lane in self.lanes
        ]

    def _lacks(self, wants: Mapping[str, Files]) -> dict[str, frozenset[str]]:
        """By lane: whose files are not there. Of a lane that would pull them, if others have them."""
        if not self.spreads:  # what was not here was refused at the door
            return {}
        found: dict[str, set[str]] = {lane.name: set() for lane in self.lanes}
        for key, (entry, addons) in wants.items():
            have = [lane for lane in self.lanes if lane.has(entry, addons)]
            able = have or [lane for lane in self._far if lane.pulls(entry, addons)]
            for lane in self.lanes:
                if lane not in able:
                    found[lane.name].add(key)
        return {name: frozenset(keys) for name, keys in found.items()}

    def lane_to_load(self, entry: Entry, idle: Sequence[BaseLane]) -> BaseLane | None:
        """The idle lane that should load this model now: the one that has it, if any has."""
        has = [lane for lane in self.lanes if lane.holds(entry) or lane.loads(entry)]
        able = [
            lane
            for lane in has or self.lanes
            if lane in idle and not lane.pause and key_of(entry) not in self._refused[lane.name]
            if not lane.leaving and (lane.has(entry) or lane.pulls(entry))
        ]
        return min(able, key=lambda lane: (len(lane.models), lane.used), default=None)

    def refuse(self, lane: BaseLane, entry: Entry) -> None:
        """This model did not fit there; no other attempt until something has changed."""
        self._refused[lane.name].add(key_of(entry))

    def refused_everywhere(self, entry: Entry) -> bool:
        able = [lane for lane in self.lanes if lane.has(entry)]
        return all(key_of(entry) in self._refused[lane.name] for lane in able)

    def memory_changed(self) -> None:
        """Something left memory or may do so now: what did not fit may fit."""
        for keys in self._refused.values():
            keys.clear()
        self.changed()

    async def close(self, why: str) -> None:
        """End all engines; returns when they are gone."""
        await asyncio.gather(*(lane.close(why) for lane in self.lanes))

    def _engine_ended(self, why: str) -> None:
        self.memory_changed()
        self.ended(why)


def key_of(entry: Entry) -> str:
    """What is loaded for this entry: equal keys are served by the same engine."""
    t5, control = "t5xxl" in entry.files, entry.files.get("control_net")
    key = f"{entry.name}, {entry.decoder} decoder" + ", T5" * t5
    for word in filter(None, (entry.seamless and f"seamless {entry.seamless}", entry.engine.prediction)):
        key += f", {word}"
    return f"{key}, ControlNet {control}" if control else key


def _machines(lanes: Iterable[BaseLane]) -> str:
    names = sorted({lane.machine for lane in lanes})
    return ", ".join(names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED)


def _free(device: Device) -> Available:
    return available(gpu=device.gpu)


def _held(lane: BaseLane) -> frozenset[str]:
    alive = [model.entry for model in lane.models if model.engine.alive]
    return frozenset(key_of(each) for entry in alive for each in (entry, entry.without("control_net")))


def _alike(settings: Settings, devices: Sequence[Device]) -> Settings:
    """What changes pixels is off unless it is said, where devices of several kinds would choose otherwise."""
    if len({device.kind for device in devices}) <= 1:
        return settings
    unsaid = [name for name in OpenOptions.__annotations__ if name not in settings.model_fields_set]
    return settings.model_copy(update=dict.fromkeys(unsaid, False))
