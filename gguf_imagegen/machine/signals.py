"""Signals that ask this process to stop, or to read its files again; on Windows what comes nearest."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable


def on_stop(act: Callable[[], object]) -> None:
    """Call `act` in the running loop on Ctrl-C and when the process is asked to end."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":  # its loops know no signals: these wake them
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, act)


def on_hangup(act: Callable[[], object]) -> None:
    """Call `act` in the running loop on SIGHUP, which Windows lacks."""
    if sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)
