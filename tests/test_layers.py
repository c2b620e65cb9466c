"""The shape of the code: imports point down, one module knows the binding, and none is too long."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

import gguf_imagegen
from tests.conftest import RunningApp

PACKAGE = Path(gguf_imagegen.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS: list[tuple[str, ...]] = [
    ("vocabulary", "machine"),
    ("settings",),
    ("modelfiles", "pictures"),
    ("catalog",),
    ("download", "engines"),
    ("planning",),
    ("pool",),
    ("jobs",),
    ("service",),
    ("api",),
    ("commands",),
    ("__main__",),
]
"""The rooms from the ground up; a module imports from its own room and from the floors below."""
MOST_ROOMS = 18
MOST_PASSED = 10
LONGEST_OF_A_DIALECT = 250


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def floor_of(name: str) -> int:
    """The floor of the room that contains the module."""
    room = room_of(name)
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"{room} stands on no floor"
    return found[0]


def room_of(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules that a module imports, wherever in it."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


KNOWN = {name_of(path) for path in MODULES}


def own_imports(path: Path) -> set[str]:
    names = {
        name.removeprefix("gguf_imagegen.") for name in imports(path) if name.startswith("gguf_imagegen.")
    }
    return names & KNOWN


@pytest.mark.parametrize("path", [m for m in MODULES if name_of(m) != "__init__"], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No module imports from a floor above its own, nor from a neighbour's room."""
    name = name_of(path)
    for imported in own_imports(path):
        assert room_of(imported) == room_of(name) or floor_of(imported) < floor_of(name), (
            f"{name} imports {imported}"
        )


def test_there_are_few_rooms() -> None:
    """Folders and single modules at the top of the package, those without code included."""
    rooms = {
        path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts
    }
    assert len(rooms - {"__init__.py", "__main__.py", "py.typed"}) <= MOST_ROOMS


def test_there_are_no_cycles() -> None:
    """Not even inside a part do modules import each other in a ring."""
    left = {name_of(path): own_imports(path) for path in MODULES}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_three_modules_know_the_binding() -> None:
    """stable_diffusion_cpp is imported in three modules of one room, and those by the worker alone."""
    binding = {
        name_of(p) for p in MODULES if any(i.split(".")[0] == "stable_diffusion_cpp" for i in imports(p))
    }
    assert binding == {f"engines.sdcpp.{name}" for name in ("build", "library", "upscaler")}
    users = {name_of(p) for p in MODULES if own_imports(p) & binding}
    assert users <= {"engines.sdcpp.worker", *binding}


def test_one_module_knows_ray() -> None:
    """A process of its own, which nothing imports: without the extra there is no Ray."""
    users = {name_of(p) for p in MODULES if any(each.split(".")[0] == "ray" for each in imports(p))}
    assert users == {"pool.ray.bridge"}
    assert not [path for path in MODULES if users & own_imports(path)]


@pytest.mark.parametrize("module", ["api.app", "commands.cli", "commands.generate", "commands.doctor"])
def test_the_server_does_not_load_native_code(module: str) -> None:
    """Importing the application leaves the binding, and its library, outside the process."""
    code = f"import sys, gguf_imagegen.{module}; print(any('stable_diffusion' in m for m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "False\n"


def test_the_worker_starts_without_what_is_slow() -> None:
    """It is loaded at each start of the engine, and NumPy would take as long as all the rest."""
    engine, slow = "gguf_imagegen.engines.sdcpp", {"importlib.metadata", "numpy"}
    modules = ", ".join(f"{engine}.{name}" for name in ("worker", "library", "upscaler"))
    code = f"import sys, {modules}; print({slow} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "set()\n"


DIALECTS = [path for path in MODULES if name_of(path).startswith("api.dialects.")]


@pytest.mark.parametrize("path", DIALECTS, ids=name_of)
def test_dialects_are_thin(path: Path) -> None:
    """A dialect reads and writes jobs: it is short, and has no hand on the engine or the models in memory."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_OF_A_DIALECT
    assert not {module for module in own_imports(path) if room_of(module) in ("engines", "pool")}


def test_no_module_is_too_long() -> None:
    """A module over 400 lines is two modules."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_every_module_says_what_it_is_for() -> None:
    """A module opens with a sentence; only empty package files have none."""
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert [name for name, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


@contextmanager
def rooms_seen() -> Iterator[set[str]]:
    """The rooms whose code runs meanwhile, on the event loop and in the threads that it uses."""
    seen: set[str] = set()
    start = f"{PACKAGE}/"

    def note(frame: FrameType, event: str, arg: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(start):
            seen.add(file.removeprefix(start).split("/")[0].removesuffix(".py"))

    loop = asyncio.get_running_loop()
    threading.setprofile(note)
    with ThreadPoolExecutor() as threads:
        loop.set_default_executor(threads)
        sys.setprofile(note)
        try:
            yield seen
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            loop.set_default_executor(ThreadPoolExecutor())


async def test_a_request_passes_few_rooms(running: RunningApp) -> None:
    """From the socket to the engine's pipes and back; words and values, which all share, are none."""
    async with running() as app:
        picture = {"prompt": "a cat", "size": "64x64", "steps": 1}
        assert (await app.post("/v1/images/generations", **picture))[0] == 200
        with rooms_seen() as seen:
            assert (await app.post("/v1/images/generations", **picture))[0] == 200
    passed = seen - {"vocabulary", "settings"}
    assert {"api", "service", "planning", "jobs", "pool", "engines", "pictures"} <= passed
    assert len(passed) <= MOST_PASSED, sorted(passed)
