"""What the package needs beside its engine: pip installs it while the compiler is at work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib

PYPROJECT: Final = Path(__file__).resolve().parents[2] / "pyproject.toml"


def others(engine: str, extra: str = "") -> list[str]:
    """What the package and this extra of it require; nothing where Python reads no TOML."""
    if sys.version_info >= (3, 11):
        return listed(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"], engine, extra)
    return []


def listed(project: dict[str, Any], engine: str, extra: str) -> list[str]:
    """Extras may name further ones, as `package[one,two]`, whose requirements are then listed, too."""
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras.get(extra, ())]
    for each in wanted:
        if further := re.fullmatch(rf"{project['name']}\[(.*)\]", each):
            wanted += [one for name in further[1].split(",") for one in extras[name.strip()]]
    return [each for each in wanted if not each.startswith((engine, f"{project['name']}["))]
