"""Processes of the operating system: workers that die with their parent, and how a process ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from gguf_imagegen.machine.devices import pin_to_cores

PR_SET_PDEATHSIG = 1
NICENESS = 5
"""The HTTP process must answer while all cores compute."""


def become_worker() -> None:
    """This process leaves Ctrl-C to its parent, goes before nobody, and on Linux dies with its parent.

    It keeps to the cores of its lane, which is why it comes before any thread is started.
    """
    pin_to_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    die_with_parent(signal.SIGKILL)


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """On Linux, by a signal of the kernel."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


def was_killed(code: int) -> bool:
    """Whether a process was ended from outside, which no fault of its own does; by its exit code."""
    return code < 0 and signal.Signals(-code).name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")


def exit_name(code: int) -> str:
    """How a process ended, in words: the signal, or the exit code."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
