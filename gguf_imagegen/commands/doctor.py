"""What this machine has and lacks for making pictures, one line a fact."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from gguf_imagegen import __version__
from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.default_model import known_models
from gguf_imagegen.catalog.parse import CatalogError
from gguf_imagegen.commands.cluster import state
from gguf_imagegen.engines.sdcpp.abilities import VARIATIONS
from gguf_imagegen.engines.sdcpp.choice import NONE_RIGHT, choose_build
from gguf_imagegen.engines.sdcpp.probe import probe
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.devices import make_devices
from gguf_imagegen.machine.levels import exports
from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Kernels
from gguf_imagegen.vocabulary.errors import InvalidRequest

ENGINE: Final = "stable-diffusion-cpp-python"
NOTE: Final = "engine-unpatched"
"""The file in .venv with the reason for which scripts/install built the engine without our kernels."""
FAST: Final = "-DGGML_LLAMAFILE=ON"
"""tinyBLAS, as scripts/install has it built in."""
PLAIN_COST: Final = "pictures made on the CPU take about 1.8 times as long"
"""Measured with AVX2: docs/performance.md."""
COMPILERS: Final[Mapping[str, str]] = {
    "darwin": "xcode-select --install",
    "win32": "Visual Studio's Build Tools",
}
"""By system, what brings one; elsewhere Debian's command is the example."""
ASKING: Final = 3.0
"""Seconds for a server to answer."""
NEEDS: Final[Mapping[Kernels, str]] = {
    "bf16": "AVX-512 with BF16",
    "int8": "AVX2, or VNNI where vectors have 512 bits",
}
"""Instructions without which kernels that are asked for are not there (`packed-simd.h`)."""
UNVARIED: Final = "none: built without; scripts/install and this project's wheels build them in"
BYTES: Final = "+int8"
"""The end of what kernels are called that multiply bytes with AVX2 alone."""
BACKENDS: Final[Mapping[str, tuple[str, str]]] = {
    "CUDA": ("cuda", "-DSD_CUDA=ON"),
    "Vulkan": ("vulkan", "-DSD_VULKAN=ON"),
    "Metal": ("metal", "-DSD_METAL=ON"),
    "MTL": ("metal", "-DSD_METAL=ON"),
    "ROCm": ("hip", "-DSD_HIPBLAS=ON"),
    "SYCL": ("sycl", "-DSD_SYCL=ON"),
}
"""By how the names of their devices begin: the word for scripts/install, and CMake's flag."""


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
        *_level(settings),
        *_library(settings.kernels),
        _cores(settings),
        _memory(),
        _models(settings),
        *_models_from(settings),
        *_cluster(settings),
    ]


def _compiler() -> list[Finding]:
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    none = "none: needed only to install or rebuild the engine"
    where = COMPILERS.get(sys.platform, "apt install g++")
    return [Finding("C++ compiler", None, "found" if compiler else f"{none} ({where})")]


def _level(settings: Settings) -> list[Finding]:
    """Which of the builds in the engine's wheel is used, and why; nothing where there is but one."""
    chosen = choose_build(settings)
    if chosen is None:
        return []
    ok = False if NONE_RIGHT in chosen.why else None
    return [Finding("CPU level", ok, f"{chosen.level}: {chosen.why}")]


def _library(kernels: Kernels) -> list[Finding]:
    try:
        version = metadata.version(ENGINE)
    except metadata.PackageNotFoundError:
        return [Finding("engine", False, f"{ENGINE} is not installed; {how_to_install()}")]
    found, why = probe(kernels=kernels)
    if found is None:
        words = f"{ENGINE} {version} does not load ({why}); {how_to_install()}"
        return [Finding("engine", False, words)]
    devices = ", ".join(f"{d['name']} ({d['description']})" for d in found["devices"]) or "CPU"
    findings = [
        Finding("engine", True, f"{ENGINE} {version}, library loads"),
        Finding("backend", True, f"{found['backend']}; devices: {devices}"),
        Finding("CPU build", None, _build_words(found["features"], found["backend"])),
        Finding("kernels", None, _kernel_words(found["kernels"], found["backend"], kernels)),
        Finding("variation seeds", None, "yes" if exports(VARIATIONS) else UNVARIED),
    ]
    if found["faults"]:
        findings.append(Finding("binding", False, "; ".join(found["faults"])))
    return findings


def _build_words(features: list[str], backend: str) -> str:
    """The instruction sets, and whether matrix products are the fast ones."""
    words = ", ".join(features) or "unknown"
    if "LLAMAFILE" in features:
        return f"{words} (LLAMAFILE is tinyBLAS)"
    if (Path(sys.prefix) / "engine-choice").exists():
        return f"{words}; without tinyBLAS, as scripts/install --compare chose"
    return f"{words}; without tinyBLAS, {PLAIN_COST}; {how_to_install(backend)}"


def _kernel_words(found: str | None, backend: str, asked: Kernels) -> str:
    """Those of ours that are in use, or why none are."""
    if found:
        return f"{found}, for products, convolutions and attention on the CPU{_less_than(asked, found)}"
    if found is not None:
        return "off, as --kernels says" if asked == "off" else "none: ggml's own are used on this CPU"
    choice, note = Path(sys.prefix) / "engine-choice", Path(sys.prefix) / NOTE
    if choice.is_file() and not choice.read_text(encoding="utf-8").strip():
        return "none, as scripts/install --compare chose"
    if note.is_file():
        return f"none: ggml's own are used: {note.read_text(encoding='utf-8').strip()}"
    return f"none: built without; {how_to_install(backend)}"


def _less_than(asked: Kernels, found: str) -> str:
    """What those in use lack of those that were asked for."""
    if asked == "int8" and found.endswith(BYTES):
        return "; Q8_0 not as bytes, which needs VNNI"
    if asked in NEEDS and asked not in found:
        return f"; {asked} needs {NEEDS[asked]}, which this CPU, build or system lacks"
    return ""


def how_to_install(backend: str = "CPU") -> str:
    """The command that makes a fast engine: the checkout's whose .venv this is, else pip's, pinned alike."""
    name, flag = next((each for start, each in BACKENDS.items() if backend.startswith(start)), ("", ""))
    script = Path(sys.prefix).parent / "scripts" / "install"
    if Path(sys.prefix).name == ".venv" and script.is_file():
        return f"build it with: {script} {name}".rstrip()
    pins = [each for each in metadata.requires("gguf-imagegen") or [] if each.startswith(ENGINE)]
    pip = "-m pip install --force-reinstall --no-cache-dir --no-deps"
    flags = f"{FAST} {flag}".rstrip()
    gpu = "" if flag else "; for a GPU with that backend's flag too, e.g. -DSD_CUDA=ON"
    pin = (pins or [ENGINE])[0]
    if sys.platform == "win32":
        return f"build it in PowerShell: $env:CMAKE_ARGS='{flags}'; & '{sys.executable}' {pip} '{pin}'{gpu}"
    return f"build it with: CMAKE_ARGS='{flags}' {sys.executable} {pip} '{pin}'{gpu}"


def _cores(settings: Settings) -> Finding:
    cores = usable_cores()
    lanes = make_devices(settings.devices, settings.cpu_lanes, settings.threads, cores)
    if not lanes:
        return Finding("cores", None, f"{cores} usable, and no lane here")
    names = ", ".join(lane.name for lane in lanes)
    each = f" for each of {len(lanes)} lanes: {names}" if len(lanes) > 1 else ""
    return Finding("cores", None, f"{cores} usable, {lanes[0].threads} threads{each}")


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


def _models_from(settings: Settings) -> list[Finding]:
    """The files in the folder of another program that cannot be used, one line each."""
    if settings.models_from is None:
        return []
    refused: list[str] = []
    try:
        known_models(settings, refused.append)
    except CatalogError:
        return []  # said of the models
    except InvalidRequest as exc:
        return [Finding("models-from", False, str(exc))]
    return [Finding("models-from", None, f"not used: {words}") for words in refused]


def _cluster(settings: Settings) -> list[Finding]:
    """Whether one can be used, and whether the head of the one that the settings name can be reached."""
    version = _version_of("ray")
    if settings.cluster is None:
        return [Finding("cluster", None, f"not used; {version or 'needs the extra [cluster]'}")]
    if version is None:
        return [Finding("cluster", False, "Ray is not installed: pip install 'gguf-imagegen[cluster]'")]
    found = [Finding("cluster", None, version)]
    if settings.cluster.partition(":")[0] != "auto":
        address = nodes.checked_address(settings.cluster)
        reached = asyncio.run(nodes.answers(address))
        found.append(Finding("head", reached, f"{address} {'answers' if reached else 'does not answer'}"))
    folder = None if settings.ephemeral else settings.state_dir
    has_token = settings.insecure_cluster or nodes.known_token(settings, folder) is not None
    made = settings.cluster.startswith("auto")
    words = (
        "there is one" if has_token else "made at the first start" if made else "none: set --cluster-token"
    )
    return [*found, Finding("cluster-token", has_token or made, words), *_machines(settings)]


def _machines(settings: Settings) -> list[Finding]:
    """Nodes and lost lanes, as the server of this machine knows them, if it runs."""
    url = f"http://127.0.0.1:{settings.port}"
    try:
        cluster = state(settings, url, ASKING)
    except InvalidRequest:
        return [Finding("nodes", None, f"not known: no server of a cluster answers at {url}")]
    found = [Finding("nodes", None, f"cluster {cluster['status']}; {len(cluster['nodes'])} node(s)")]
    for node in cluster["nodes"]:
        words = [node["status"], node["why"], ", ".join(node["devices"]), ", ".join(node["models"])]
        found.append(Finding(node["name"], None, "; ".join(filter(None, words))))
    for lost in cluster["lost"][-1:]:
        words = [f"{cluster['lanes_lost']} so far", f"the last one was {lost['lane']}", lost["why"]]
        found.append(Finding("lost lanes", None, "; ".join(words)))
    return found


def _version_of(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None
