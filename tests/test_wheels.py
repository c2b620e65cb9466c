"""Wheels: an index that pip and uv read, and an engine that is taken only where it is what it says."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.engine import wheels
from scripts.engine.wheels import SUMS, Unfit, install_from, named, require_fit, source_digest
from scripts.wheels import archive, engine
from scripts.wheels.engine import lay_out, manifest
from scripts.wheels.index import write_index
from scripts.wheels.levels import levels_for

ENGINE = "stable_diffusion_cpp_python-0.4.7-1cpu-py3-none-manylinux_2_34_x86_64.whl"


def wheel(folder: Path, name: str = ENGINE, *, source: str = "") -> Path:
    """A wheel of the engine that says what it was made of."""
    path = folder / name
    said = manifest("cpu", levels_for("x86_64")) | ({"source": source} if source else {})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(wheels.MANIFEST, json.dumps(said))
    return path


def test_an_index_of_wheels(tmp_path: Path) -> None:
    """Names as PEP 503 wants them, with links that lead to the files, and their hashes."""
    wheel(tmp_path)
    wheel(tmp_path, "gguf_imagegen-0.1.0-py3-none-any.whl")
    (tmp_path / "gguf-imagegen-linux-x86_64.tar.gz").write_bytes(b"archive")
    write_index(tmp_path)
    simple = tmp_path / "simple"
    assert re.findall('href="(.*?)"', (simple / "index.html").read_text()) == [
        "gguf-imagegen/", "stable-diffusion-cpp-python/",
    ]  # fmt: skip
    page = simple / "stable-diffusion-cpp-python"
    (link,) = re.findall('href="(.*?)"', (page / "index.html").read_text())
    file, _, digest = link.partition("#sha256=")
    assert hashlib.sha256((page / file).read_bytes()).hexdigest() == digest
    sums = (tmp_path / SUMS).read_text()
    assert [line.split()[1] for line in sums.splitlines()] == [
        "gguf_imagegen-0.1.0-py3-none-any.whl", ENGINE, "gguf-imagegen-linux-x86_64.tar.gz",
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path, check=True)


def test_pip_finds_them(tmp_path: Path) -> None:
    """By the page alone, as a file."""
    with zipfile.ZipFile(tmp_path / "a_package-1-py3-none-any.whl", "w") as file:
        file.writestr("a_package.py", "")
        file.writestr(
            "a_package-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: a-package\nVersion: 1\n"
        )
        file.writestr(
            "a_package-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("a_package-1.dist-info/RECORD", "")
    write_index(tmp_path)
    index = (tmp_path / "simple").as_uri()
    pip = [sys.executable, "-m", "pip", "--isolated", "download", "--no-deps", "--index-url", index]
    subprocess.run([*pip, "--dest", tmp_path / "got", "a-package"], check=True, capture_output=True)
    assert (tmp_path / "got" / "a_package-1-py3-none-any.whl").is_file()


def test_the_wheel_of_a_machine() -> None:
    """The one for its processor and backend; archives and other packages are none."""
    sums = (
        f"aa  {ENGINE}\n"
        f"bb *{ENGINE.replace('x86_64', 'aarch64')}\n"
        f"cc  {ENGINE.replace('1cpu', '1vulkan')}\n"
        "dd  gguf_imagegen-0.1.0-py3-none-any.whl\n\nnot a line of sums\n"
    )
    assert named(sums, "cpu", "x86_64") == {ENGINE: "aa"}
    assert named(sums, "cpu", "aarch64") == {ENGINE.replace("x86_64", "aarch64"): "bb"}
    assert named(sums, "vulkan", "x86_64") == {ENGINE.replace("1cpu", "1vulkan"): "cc"}
    assert named(sums, "cuda", "x86_64") == {}


def test_a_wheel_of_this_checkout_fits(tmp_path: Path) -> None:
    path = wheel(tmp_path)
    require_fit(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "where", ["folder", "nothing", "http://127.0.0.1:9/none", "wrong hash", "other source"]
)
def test_a_wheel_that_does_not_fit(where: str, tmp_path: Path) -> None:
    """Is not installed, and the reason is told."""
    path = wheel(tmp_path, source="another" if where == "other source" else "")
    digest = "0" * 64 if where == "wrong hash" else hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / SUMS).write_text(f"{digest}  {ENGINE}\n")
    place, machine, reason = {
        "folder": (str(tmp_path), "riscv64", "has no wheel of the engine for riscv64 with cpu"),
        "nothing": (str(tmp_path / "nothing"), "x86_64", "SHA256SUMS cannot be read from"),
        "http://127.0.0.1:9/none": (where, "x86_64", "SHA256SUMS cannot be read from"),
        "wrong hash": (str(tmp_path), "x86_64", "does not have the hash that SHA256SUMS names"),
        "other source": (str(tmp_path), "x86_64", "made of another source or with other kernels"),
    }[where]
    with pytest.raises(Unfit, match=reason):
        install_from(place, "cpu", machine)


def test_a_wheel_without_a_list(tmp_path: Path) -> None:
    """Was not made by scripts/build_wheels."""
    path = tmp_path / ENGINE
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(Unfit, match="does not say what it was made of"):
        require_fit(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_what_is_in_the_engines_wheel(tmp_path: Path) -> None:
    """The binding's Python, the list of levels, and every licence text; no library of another build."""
    tree = tmp_path / "tree"
    package = tree / engine.PACKAGE
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lib" / "old.so").touch()
    (tree / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: stable_diffusion_cpp_python\nVersion: 0.4.7\n"
    )
    for text in engine.LICENCES.values():
        (tree / text).parent.mkdir(parents=True, exist_ok=True)
        (tree / text).write_text("MIT")
    lay_out(tree, tmp_path / "wheel", "cpu", levels_for("x86_64"))
    files = {
        str(path.relative_to(tmp_path / "wheel"))
        for path in (tmp_path / "wheel").rglob("*")
        if path.is_file()
    }
    info = "stable_diffusion_cpp_python-0.4.7.dist-info"
    licences = (*engine.LICENCES, "LICENSE-kernels.txt", "NOTICE-libgomp.txt")
    assert files == {
        f"{engine.PACKAGE}/__init__.py", f"{engine.PACKAGE}/lib/levels.json",
        f"{info}/METADATA", f"{info}/WHEEL", *(f"{info}/licenses/{name}" for name in licences),
    }  # fmt: skip
    assert "Build: 1cpu\n" in (tmp_path / "wheel" / info / "WHEEL").read_text()
    said = json.loads((tmp_path / "wheel" / engine.PACKAGE / "lib" / "levels.json").read_text())
    assert said["source"] == source_digest()


@pytest.mark.parametrize(
    ("name", "everywhere"),
    [
        ("libc.so.6", True), ("libm.so.6", True), ("libpthread.so.0", True), ("ld-linux-x86-64.so.2", True),
        ("libcrypto.so.3", False), ("libcrypt.so.1", False), ("libstdc++.so.6", False),
        ("libsqlite3.so.0", False), ("libreadline.so.8", False), ("libmpdec.so.3", False),
    ],
)  # fmt: skip
def test_libraries_of_every_linux(name: str, everywhere: bool) -> None:
    """Stay out of the archive: they are the C library's."""
    assert bool(archive.OF_EVERY_LINUX.match(name)) is everywhere


def test_licences_where_nobody_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is packed on systems without dpkg, as in the release's container, too."""
    monkeypatch.setenv("PATH", str(tmp_path))
    archive.keep_licence(Path("/usr/lib/libany.so.1"), tmp_path / "licences")
    assert not (tmp_path / "licences").exists()
