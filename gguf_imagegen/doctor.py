"""What this machine has and lacks for making pictures, one line a fact."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

import psutil

from gguf_imagegen import __version__
from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.parse import CatalogError
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.settings import Settings

PROBE = """
import dataclasses, json
from gguf_imagegen.engine.build import describe
from gguf_imagegen.engine.sdcpp import self_test
print(json.dumps({**dataclasses.asdict(describe()), "faults": self_test()}))
"""
"""Run in a process of its own: a broken library may end it."""


@dataclass(frozen=True)
class Finding:
    """`ok` None: worth knowing, neither good nor bad."""

    name: str
    ok: bool | None
    words: str


def examine(settings: Settings) -> list[Finding]:
    """All findings; a False one means that pictures cannot be made."""
    return [
        Finding("gguf-imagegen", None, __version__),
        Finding("python", sys.version_info >= (3, 10), f"{platform.python_version()}, {platform.platform()}"),
        *_compiler(),
        *_library(),
        _cores(settings),
        _memory(),
        _models(settings),
    ]


def _compiler() -> list[Finding]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    words = "found" if compiler else "none: needed only to install or rebuild the engine (apt install g++)"
    return [Finding("C++ compiler", None, words)]


def _library() -> list[Finding]:
    try:
        version = metadata.version("stable-diffusion-cpp-python")
    except metadata.PackageNotFoundError:
        return [
            Finding("engine", False, "stable-diffusion-cpp-python is not installed: scripts/install does it")
        ]
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60)
        found = json.loads(probe.stdout.splitlines()[-1]) if probe.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        found = None
    if found is None:
        return [
            Finding(
                "engine", False, f"stable-diffusion-cpp-python {version} does not load; install it again with"
                " pip install --force-reinstall --no-cache-dir stable-diffusion-cpp-python",
            )
        ]  # fmt: skip
    devices = ", ".join(f"{d['name']} ({d['description']})" for d in found["devices"]) or "CPU"
    findings = [
        Finding("engine", True, f"stable-diffusion-cpp-python {version}, library loads"),
        Finding("backend", True, f"{found['backend']}; devices: {devices}"),
        Finding("CPU build", None, _build_words(found["features"])),
    ]
    if found["faults"]:
        findings.append(Finding("binding", False, "; ".join(found["faults"])))
    return findings


def _build_words(features: list[str]) -> str:
    """The instruction sets, and whether matrix products are the fast ones."""
    words = ", ".join(features) or "not told"
    if "LLAMAFILE" in features:
        return f"{words} (LLAMAFILE is tinyBLAS)"
    return f"{words}; without tinyBLAS, which is faster: scripts/install builds it in"


def _cores(settings: Settings) -> Finding:
    return Finding("cores", None, f"{usable_cores()} usable, {settings.threads or usable_cores()} threads")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    gib = 1024**3
    return Finding("memory", None, f"{memory.available / gib:.1f} GiB free of {memory.total / gib:.1f} GiB")


def _models(settings: Settings) -> Finding:
    try:
        catalog = load_catalog(settings.models_dir, settings.catalog)
    except CatalogError as exc:
        return Finding("models", False, str(exc))
    here = [entry.id for entry in catalog.entries if catalog.on_disk(entry)]
    return Finding("models", None, f"on disk: {', '.join(here) or 'none'}")
