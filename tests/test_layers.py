"""The shape of the code: imports point down, one module knows the binding, and none is too long."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_imagegen

PACKAGE = Path(gguf_imagegen.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[tuple[str, ...]] = [
    ("cgroups", "containers", "errors", "events", "heap", "logs", "settings", "stdio"),
    ("engine.protocol",),
    ("data_urls", "images", "metadata"),
    ("schema", "catalog"),
    ("engine",),
    ("tuning.machine", "tuning.options", "tuning.record"),
    ("jobs", "pulling"),
    ("api",),
    ("server",),
    ("oneshot", "doctor", "inspecting", "flags", "testmodel", "train", "tuning"),
    ("cli",),
    ("__main__",),
]
"""From the bottom up; a module may import what is below it, and its own part."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer_of(name: str) -> int:
    """The layer of the longest part that contains the module."""
    found = [
        (len(part), number)
        for number, parts in enumerate(LAYERS)
        for part in parts
        if name == part or name.startswith(f"{part}.")
    ]
    assert found, f"{name} stands in no layer"
    return max(found)[1]


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    known = {name_of(module) for module in MODULES}
    names = {
        name.removeprefix("gguf_imagegen.") for name in imports(path) if name.startswith("gguf_imagegen.")
    }
    return names & known


@pytest.mark.parametrize("path", [m for m in MODULES if name_of(m) != "__init__"], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No module imports from a layer above its own, nor from a neighbour of its layer."""
    name = name_of(path)
    part = name.split(".", maxsplit=1)[0]
    for imported in own_imports(path):
        same_part = imported.split(".", maxsplit=1)[0] == part
        assert (
            layer_of(imported) < layer_of(name) or same_part or {name, imported} == {"images", "metadata"}
        ), f"{name} imports {imported}"


def test_words_import_nothing_of_ours() -> None:
    """Nothing at the very bottom leans on anything else of ours."""
    assert all(not own_imports(PACKAGE / f"{name}.py") for name in LAYERS[0])


def test_there_are_no_cycles() -> None:
    """Not even inside a part do modules import each other in a ring."""
    left = {name_of(path): own_imports(path) for path in MODULES}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_three_modules_know_the_binding() -> None:
    """stable_diffusion_cpp is imported in three modules of the engine, and those by the worker alone."""
    binding = {
        name_of(p) for p in MODULES if any(i.split(".")[0] == "stable_diffusion_cpp" for i in imports(p))
    }
    assert binding == {"engine.build", "engine.sdcpp", "engine.upscaler"}
    users = {name_of(p) for p in MODULES if own_imports(p) & binding}
    assert users <= {"engine.worker", *binding}


@pytest.mark.parametrize("module", ["api.app", "cli", "oneshot", "doctor"])
def test_the_server_does_not_load_native_code(module: str) -> None:
    """Importing the application leaves the binding, and its library, outside the process."""
    code = f"import sys, gguf_imagegen.{module}; print(any('stable_diffusion' in m for m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "False\n"


DIALECTS = (
    "a1111", "a1111_extras", "a1111_lists", "a1111_routes", "chat", "compat", "openai", "sdcpp_capabilities",
    "sdcpp_server",
)  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_thin(name: str) -> None:
    """A dialect reads and writes jobs: it is short, and has no hand on the engine or the models in memory."""
    path = PACKAGE / "api" / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
    touched = {module for module in own_imports(path) if module.startswith("engine.")}
    assert touched <= {"engine.protocol"}
    assert "jobs.resident" not in own_imports(path)


def test_no_module_is_too_long() -> None:
    """A module over 400 lines is two modules."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_every_module_says_what_it_is_for() -> None:
    """A module opens with a sentence; only empty package files have none."""
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert [name for name, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []
