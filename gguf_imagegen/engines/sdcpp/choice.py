"""Which level of the engine is used: the best that this CPU runs and that draws the golden picture.

A build is checked once; what came out is kept in the state folder, by the digest of its library.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from gguf_imagegen.engines.sdcpp import golden
from gguf_imagegen.engines.sdcpp.golden import Likeness
from gguf_imagegen.machine import levels
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.files import put
from gguf_imagegen.machine.levels import VARIABLE, InUse, Level
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)
RECORD: Final = "engine-checks.json"
NONE_RIGHT: Final = "no build draws the golden picture"
Check: TypeAlias = Callable[[Path], Likeness]


def choose_build(settings: Settings) -> InUse | None:
    """Choose for this process and those that it starts; None where there is nothing to choose from.

    The environment's own choice stands. Takes a second or two for a build that was not checked before.
    """
    installed = levels.installed_levels()
    if not installed or VARIABLE in os.environ:
        return levels.in_use()
    threads = settings.threads or usable_cores()
    with Record(None if settings.ephemeral else settings.state_dir / RECORD) as record:
        runnable = levels.runnable(installed, levels.cpu_flags())
        level, why = best(runnable, record.remembered(lambda library: golden.checked(library, threads)))
    levels.use(level, why)
    return levels.in_use()


def best(runnable: Sequence[Level], check: Check) -> tuple[Level, str]:
    """The first that is right, and why that one; the last, which any CPU runs, if none is."""
    wrong: list[str] = []
    for level in runnable:
        likeness = check(level.library)
        if likeness.right:
            words = likeness.words if wrong else f"the best for this CPU, {likeness.words}"
            return level, "; ".join([words, *wrong])
        wrong.append(f"not {level.name}: {likeness.words}")
        log.warning("the engine's build for %s is not used: %s", level.name, likeness.words)
    return runnable[-1], "; ".join([NONE_RIGHT, *wrong])


class Record:
    """What checks came to, in a file that is written at the end if anything was added; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._golden = golden.digest()
        self._kept = self._read()
        self._new = False

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is None or not self._new:
            return
        with suppress(OSError):  # a folder that cannot be written costs a second at the next start
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            body = {"golden": self._golden, "libraries": self._kept}
            put(self._path, json.dumps(body, indent=1).encode(), 0o600, lasting=False)

    def remembered(self, check: Check) -> Check:
        """The check, done once for a library's bytes; where there was no picture it is done again."""

        def once(library: Path) -> Likeness:
            digest = hashlib.sha256(library.read_bytes()).hexdigest()
            if digest in self._kept:
                return Likeness(self._kept[digest])
            likeness = check(library)
            if not likeness.fault:
                self._kept[digest], self._new = round(likeness.psnr, 2), True
            return likeness

        return once

    def _read(self) -> dict[str, float]:
        """Nothing where the file is of another golden picture, or cannot be read."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            body: Mapping[str, object] = json.loads((self._path or Path()).read_text(encoding="utf-8"))
            libraries = body.get("libraries")
            if body.get("golden") == self._golden and isinstance(libraries, dict):
                return {str(name): float(value) for name, value in libraries.items()}
        return {}
