"""The engine is built with our kernels where they fit its source, elsewhere as it comes, and says why."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.engine import patched, vocabularies
from scripts.engine.others import listed, others
from scripts.engine.patched import GGML_CPU, HOOKS, KERNELS, Unpatched
from scripts.engine.upstream import __main__ as upstream

ROOT = Path(__file__).resolve().parents[1]
HUNK = re.compile(r"@@ -(\d+)")
INCLUDES = re.compile(r'#include "(packed.*)"')
PIP_OF_A_NEW_ENVIRONMENT = """#!/usr/bin/env bash
# Stands for Python: the engine loads once pip was asked for what it needs, if that is to be had.
# What else the package needs is there only once the engine is being compiled.
case "$*" in
  *" --no-warn-conflicts "*)
    until [ -e "$FOLDER/calls" ]; do sleep 0.01; done
    echo others >>"$FOLDER/calls" ;;
  *" download "*) cp "$FOLDER"/*.tar.gz "${{@: -1}}" ;;
  *--force-reinstall*) echo "install ${{*: -1}}" >>"$FOLDER/calls" ;;
  *" install --quiet "*) echo needed >>"$FOLDER/calls"; [ {there} = 1 ] && touch "$FOLDER/needed" ;;
  "-c "*) [ -e "$FOLDER/needed" ] ;;
  *) exec {python} "$@" ;;
esac
"""

VOCABULARY = """\
static const unsigned char merges[] = {
  0x23, 0xff, 0x00,
  0x0a
};
static const unsigned char json[] = {
    0x7b,
    0x7d,
};
static const unsigned char odd[] = {
    0x7, 35
};
"""
PRINTED = """\
#include <cstdio>
#include "words.hpp"
template <size_t n> static void print(const unsigned char (&data)[n]) {
    for (size_t i = 0; i < n; ++i) printf("%02x", data[i]);
    printf("\\n");
}
int main() { print(merges); print(json); print(odd); }
"""


def fitting(hook: str) -> dict[str, list[str]]:
    """Files that a hook fits, by name: its own context at the right lines, and nothing else."""
    files: dict[str, list[str]] = {}
    for part in re.split(r"^--- a/", hook, flags=re.M)[1:]:
        name, _, *rest = part.splitlines()
        lines = files.setdefault(name, [])
        for line in rest:
            if hunk := HUNK.match(line):
                lines += [""] * (int(hunk[1]) - 1 - len(lines))
            elif not line.startswith("+"):
                lines.append(line[1:])
    return files


def archive(folder: Path, *, doctored: bool = False) -> Path:
    """A source archive that all hooks fit, unless one line of the context is another one."""
    path = folder / "stable_diffusion_cpp_python-0.4.7.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for hook in HOOKS:
            for name, lines in fitting(hook.read_text()).items():
                if doctored and name.endswith("/ggml-cpu.c"):
                    lines[-1] += " // changed"
                data = "\n".join([*lines, ""]).encode()
                entry = tarfile.TarInfo(f"engine-0.4.7/{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def test_hooks_and_kernels_are_put_in(tmp_path: Path) -> None:
    """Into the engine's own folder for CPU code, and every hook calls something of ours."""
    tree = patched.patched(patched.unpacked(archive(tmp_path), tmp_path))
    there = tree / GGML_CPU
    for kernel in KERNELS:
        assert (there / kernel.name).read_bytes() == kernel.read_bytes()
    assert "ggml_packed_forward" in (there / "ggml-cpu.c").read_text()


def test_a_source_that_the_hooks_do_not_fit(tmp_path: Path) -> None:
    """Is left alone, even where only one line of their surroundings is another one."""
    tree = patched.unpacked(archive(tmp_path, doctored=True), tmp_path)
    with pytest.raises(Unpatched, match=r"\.patch does not fit the engine's source"):
        patched.patched(tree)


def test_without_the_command_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unpatched, match="`patch` is not installed"):
        patched.source_tree(tmp_path)


def test_an_archive_of_another_hash(tmp_path: Path) -> None:
    """Is not unpacked: what pip installs otherwise is installed, and the reason is kept for the doctor."""
    archive(tmp_path)
    with zipfile.ZipFile(tmp_path / "otherwise-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("otherwise.py", "")
        wheel.writestr(
            "otherwise-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: otherwise\nVersion: 1\n"
        )
        wheel.writestr("otherwise-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("otherwise-1.dist-info/RECORD", "")
    place, note = tmp_path / "installed", tmp_path / "note"
    subprocess.run(
        [sys.executable, "-m", "scripts.engine.patched", "--otherwise", "otherwise", "--note", str(note)],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_TARGET": str(place)},
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (place / "otherwise.py").is_file()
    assert note.read_text() == "the engine's source archive does not have the pinned hash\n"


@pytest.mark.parametrize("there", [True, False])
def test_what_the_engine_needs_is_installed_first(tmp_path: Path, *, there: bool) -> None:
    """A new environment has nothing of it, and without it the best engine does not load.

    Before it comes what else the package needs, which pip installs while the engine is compiled.
    """
    fake = tmp_path / "python"
    fake.write_text(PIP_OF_A_NEW_ENVIRONMENT.format(python=sys.executable, there=int(there)))
    fake.chmod(0o755)
    archive(tmp_path)
    note = tmp_path / "note"
    program = (
        "import sys; sys.executable = sys.argv.pop(1); from scripts.engine import patched; patched.main()"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(fake), "--otherwise", "plain", "--note", str(note)],
        cwd=ROOT, env={**os.environ, "FOLDER": str(tmp_path)}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert note.exists() is not there
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    meanwhile = ["others"] if others(patched.ENGINE) else []
    assert calls == ["install", *meanwhile, "needed", *([] if there else ["install"])]
    assert ("plain" in (tmp_path / "calls").read_text()) is not there


def test_what_the_package_needs_beside_its_engine() -> None:
    """With what an extra names, and the extras that it includes."""
    project = {
        "name": "package",
        "dependencies": ["one>=1", "an-engine>=2,<3"],
        "optional-dependencies": {
            "dev": ["package[more,most]", "two"], "more": ["three"], "most": ["four", "five"], "no": ["six"],
        },
    }  # fmt: skip
    assert listed(project, "an-engine", "") == ["one>=1"]
    assert listed(project, "an-engine", "dev") == ["one>=1", "two", "three", "four", "five"]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_vocabularies_are_embedded(system: str, tmp_path: Path) -> None:
    """The compiler sees the same bytes, and no longer as numbers where the assembler takes a file."""
    folder = tmp_path / "tree" / vocabularies.FOLDER
    folder.mkdir(parents=True)
    (folder / "words.hpp").write_text(VOCABULARY)
    (folder / "main.cpp").write_text(PRINTED)
    vocabularies.embed(tmp_path / "tree", system)
    assert (folder / "words.hpp").read_text().count("0x7b") == (system != "linux")
    moved = (tmp_path / "tree").rename(tmp_path / "moved") / vocabularies.FOLDER
    program = tmp_path / "program"
    subprocess.run(["c++", "-fPIC", moved / "main.cpp", "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, text=True).stdout == "23ff000a\n7b7d\n0723\n"


def test_these_tests_run_on_the_engine_with_kernels() -> None:
    """The environment that `scripts/test` makes has no note of why it could not be built."""
    note = Path(sys.prefix) / "engine-unpatched"
    assert not note.exists(), note.read_text()


def test_the_pinned_archive_is_of_an_allowed_version() -> None:
    """Else the engine that is built would be replaced at once by one without kernels."""
    (pin,) = re.findall(rf"^{patched.ENGINE}==(\S+) --hash=sha256:[0-9a-f]{{64}}$", pinned(), re.M)
    allowed = re.search(rf'"({patched.ENGINE}[^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert allowed is not None
    assert pin in Requirement(allowed[1]).specifier


def pinned() -> str:
    return (ROOT / "scripts" / "engine" / "requirements.txt").read_text()


def shown(repository: Path, what: str) -> str:
    command = ["git", "-C", str(repository), "show", what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_commits_for_ggml_add_up_to_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the files that its list of sources and its kernels name, and the last has all."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    tree = patched.unpacked(archive(tmp_path), tmp_path)
    (tree / upstream.GGML / "tests").mkdir()
    (tree / upstream.GGML / upstream.TESTS_LIST).write_text("# ggml's own tests\n")
    repository = tmp_path / "new" / "ggml"
    upstream.series(tree / upstream.GGML, repository)
    assert len(list(repository.parent.glob("*.patch"))) == len(upstream.COMMITS)
    for kernel in KERNELS:
        assert (repository / upstream.KERNELS_THERE / kernel.name).read_bytes() == kernel.read_bytes()
    for back in range(len(upstream.COMMITS)):
        folder = f"HEAD~{back}:{upstream.KERNELS_THERE}"
        names = set(re.findall(r"packed[\w-]*\.\w+", shown(repository, f"{folder}/CMakeLists.txt")))
        there = {name: shown(repository, f"{folder}/{name}") for name in names}
        text = "".join(there[name] for name in sorted(names) if name.endswith(".cpp"))
        assert {include for each in there.values() for include in INCLUDES.findall(each)} <= names
        declared = set(re.findall(r"\bggml_packed_\w+(?=\()", there["packed.h"]))
        assert set(re.findall(r"\bggml_packed_\w+", text)) == declared
        defined = set(re.findall(r"^(?:bool|const char \*) (ggml_packed_\w+)\(", text, re.M))
        assert defined == declared
