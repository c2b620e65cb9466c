"""The event loop: uvloop's where it is installed, which is not on Windows."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """What `asyncio.run` does, on the fastest loop there is."""
    try:
        fast = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.run(main)
    result: Result = fast.run(main)
    return result
