"""The seam for other engines: what a backend can do, the devices it finds, and an engine for each.

stable-diffusion.cpp is the one that comes along (`engines.sdcpp.backend`). Others are named by `--backend`:
by an entry point of the group `gguf_imagegen.backends`, or as `module:name`; docs/engine.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

from gguf_imagegen.machine.devices import Device
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.engine import Engine

GROUP: Final = "gguf_imagegen.backends"
OURS: Final = EntryPoint("sdcpp", "gguf_imagegen.engines.sdcpp.backend:SdCpp", GROUP)


class Backend(Protocol):
    """Makes engines. All methods are quick, but for `devices`, which may look at hardware."""

    def abilities(self) -> Abilities:
        """What each of its engines can do; the same at any time."""
        ...

    def devices(self) -> Sequence[Device]:
        """A device for each lane, with names of their own. Asked once, before anything is served."""
        ...

    def engine(self, device: Device) -> Engine:
        """An engine that computes there, not started yet."""
        ...


class UnknownBackend(Exception):
    """There is no such backend; the message says what was looked for."""


def named_backend(name: str) -> Callable[[Settings], Backend]:
    """What makes the backend of this name, from settings. Raises UnknownBackend."""
    found = [OURS] if name == OURS.name else [*entry_points(group=GROUP, name=name)]
    if not found and ":" not in name:
        raise UnknownBackend(
            f"there is no backend {name!r}: neither sdcpp, nor MODULE:NAME, nor an installed entry point of"
            f" the group {GROUP}"
        )
    try:
        make: Callable[[Settings], Backend] = (found or [EntryPoint(name, name, GROUP)])[0].load()
    except (ImportError, AttributeError) as exc:
        raise UnknownBackend(f"backend {name!r} cannot be imported: {exc}") from exc
    return make
