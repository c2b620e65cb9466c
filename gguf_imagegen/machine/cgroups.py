"""Where the limits of this process stand: the folders of its control groups, of version 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Literal[1, 2], Path]]:
    """The folder of our cgroup and of each above it, for a limit there holds too; each with its version.

    In a container the named folder may not be there, and the limit stands in the mount's own.
    """
    mount = root / "sys/fs/cgroup"
    for line in read_or_empty(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            yield (1 if controllers else 2), folder
            folder = folder.parent


def read_or_empty(path: Path) -> str:
    """What a file of the system says; nothing where there is none, as on macOS."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
