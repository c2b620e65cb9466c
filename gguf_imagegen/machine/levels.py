"""Builds of the engine for several levels of CPU, side by side in one wheel, and which of them is in use.

`scripts/build_wheels` makes such a wheel. An engine that was compiled on its machine has one build only.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

VARIABLE: Final = "STABLE_DIFFUSION_CPP_LIB"
"""The binding loads the library that this names, else the one for the lowest level."""
WORDS: Final = "GGUF_IMAGEGEN_ENGINE_BUILD"
"""Beside it the level and the reason, for this process and those that it starts."""
MANIFEST: Final = "levels.json"


@dataclass(frozen=True)
class Level:
    """A build of the engine; the CPU must have all that it `needs`, as /proc/cpuinfo names it."""

    name: str
    library: Path
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class InUse:
    """The level that processes started from here on use, and why that one."""

    level: str
    why: str


class _Listed(Struct, frozen=True):
    name: str
    file: str
    needs: frozenset[str]


class _Manifest(Struct, frozen=True):
    """Of `levels.json`, what is read here: see `scripts.wheels.engine.manifest`."""

    levels: tuple[_Listed, ...]


def installed_levels(folder: Path | None = None) -> tuple[Level, ...]:
    """Best first; none where the engine has one build only, or is not there. The binding is not imported."""
    folder = folder or _library_folder()
    if folder is None:
        return ()
    with suppress(OSError, msgspec.MsgspecError):
        listed = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Manifest).levels
        every = (Level(each.name, folder / each.file, each.needs) for each in listed)
        return tuple(level for level in every if level.library.is_file())
    return ()


def runnable(levels: Iterable[Level], flags: frozenset[str]) -> tuple[Level, ...]:
    """Those that a CPU with these flags can run; the lowest even if the flags are unknown."""
    every = tuple(levels)
    return tuple(level for level in every if level.needs <= flags) or every[-1:]


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """As Linux names them; none elsewhere."""
    with suppress(OSError):
        if found := re.search(
            r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M
        ):
            return frozenset(found[1].split())
    return frozenset()


def use(level: Level, why: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have the processes that are started from here on load this build."""
    environment[VARIABLE] = str(level.library)
    environment[WORDS] = f"{level.name}: {why}"


def in_use(environment: Mapping[str, str] = os.environ) -> InUse | None:
    """None where the engine has one build only."""
    level, separator, why = environment.get(WORDS, "").partition(": ")
    return InUse(level, why) if separator else None


def exports(function: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the library in use has a function of this name, seen in its file: nothing is loaded."""
    folder = _library_folder()
    named = environment.get(VARIABLE)
    found = [Path(named)] if named else [*folder.glob("*stable-diffusion.*")] if folder else []
    return any(_holds(library, function.encode() + b"\0") for library in found)


def _holds(file: Path, text: bytes) -> bool:
    with (
        suppress(OSError, ValueError),  # ValueError: it is empty
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return data.find(text) >= 0
    return False


def _library_folder() -> Path | None:
    found = find_spec("stable_diffusion_cpp")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "lib" if places else None
