"""Where a program keeps its files, unless settings say otherwise."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def models() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "gguf-imagegen" / "models"


def state() -> Path:
    """The platform's folder for what a program keeps between two runs."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Application Support"
    else:
        base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "gguf-imagegen"
