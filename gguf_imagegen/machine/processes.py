"""Processes of the operating system: workers that die with their parent, and how a process ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from gguf_imagegen.machine.devices import pin_to_cores

PR_SET_PDEATHSIG = 1
SYNCHRONIZE = 0x00100000
FOREVER = 0xFFFFFFFF
ACCESS_VIOLATION = 0xC0000005
PYTHON = getattr(sys, "_base_executable", sys.executable) if sys.platform == "win32" else sys.executable
"""What to start for a process of our own. On Windows the python.exe of a virtual environment only starts
another one, of which we would know neither the CPU time nor the end."""
NICENESS = 5
"""The HTTP process must answer while all cores compute."""


def become_worker() -> None:
    """This process leaves Ctrl-C to its parent, goes before nobody, and on Linux and Windows dies with it.

    It keeps to the cores of its lane, which is why it comes before any thread is started.
    """
    pin_to_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    die_with_parent()


def die_with_parent(*, kindly: bool = False) -> None:
    """On Linux by a signal of the kernel, which may be handled if it is sent `kindly`."""
    if sys.platform == "linux":
        by = signal.SIGTERM if kindly else signal.SIGKILL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    elif sys.platform == "win32":
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def of_python() -> dict[str, str]:
    """Variables by which `PYTHON` finds its virtual environment, as multiprocessing has them."""
    return {"__PYVENV_LAUNCHER__": sys.executable} if sys.platform == "win32" else {}


def apart() -> dict[str, Any]:
    """Arguments that start a process in a group of its own, which the Ctrl-C of a console does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


if sys.platform == "win32":

    def _end_with(parent: int) -> None:
        """Wait for the end of the parent, in the middle of whatever this process computes."""
        kernel = ctypes.WinDLL("kernel32")
        kernel.OpenProcess.restype = ctypes.c_void_p
        kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        handle = kernel.OpenProcess(SYNCHRONIZE, False, parent)
        if handle:
            kernel.WaitForSingleObject(handle, FOREVER)
        os._exit(0)


def user_number() -> str:
    """Of the user whose process this is; "" on Windows, where each has a folder for temporary files."""
    if sys.platform == "win32":
        return ""
    return str(os.getuid())


def was_killed(code: int) -> bool:
    """Whether a process was ended from outside, which no fault of its own does; by its exit code."""
    return code < 0 and signal.Signals(-code).name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")


def exit_name(code: int) -> str:
    """How a process ended, in words: the signal, or the exit code."""
    if code == ACCESS_VIOLATION:
        return "access violation"
    if code >= 0:
        return f"exit code {code}" if code < 256 else f"exit code {code:#x}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
