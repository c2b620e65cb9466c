"""An archive with Python and all packages, for machines without either: unpacked anywhere, it runs.

The Python is the one that runs this. What it links to beside the C library is put into the archive, so that
any Linux will do whose glibc is as new as that Python needs; that of `uv python install` needs the oldest.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "gguf-imagegen"
BESIDE: Final = ("README.md", "LICENSE", "deploy/systemd/gguf-imagegen.service")
LEFT_OUT: Final = (
    "__pycache__", "site-packages", "test", "tests", "idlelib", "turtledemo", "*tkinter*", "lib2to3",
    "config-*", "*.a", "ensurepip",
)  # fmt: skip
"""Of the standard library, which nothing here uses; pip comes from outside."""
OF_EVERY_LINUX: Final = re.compile(
    r"(ld-linux|lib(c|m|dl|rt|pthread|util|nsl|resolv|anl)|linux-vdso|linux-gate)\b[-.]"
)
"""The C library's parts, which must be of one release with the loader."""
LAUNCHER: Final = """\
#!/bin/sh
# gguf-imagegen with its own Python, wherever this folder lies.
here=$(dirname "$(readlink -f "$0")")
unset PYTHONHOME PYTHONPATH
exec "$here/python/bin/python3" -m gguf_imagegen "$@"
"""


def build_archive(wheels: Path, work: Path) -> Path:
    """`gguf-imagegen-linux-MACHINE.tar.gz` beside the wheels that it is made of."""
    root = work / "archive" / NAME
    shutil.rmtree(root, ignore_errors=True)
    python = copy_python(root / "python")
    version = sysconfig.get_python_version()
    packages = root / "python" / "lib" / f"python{version}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-compile"]
    ours = sorted(wheels.glob("*.whl"))  # by file: nobody else's of the same name
    subprocess.run([*pip, "--target", packages, "--only-binary", ":all:", *ours], check=True)
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts that name this machine's Python
    how = ["--invalidation-mode", "unchecked-hash", "-s", str(root.parent)]
    # what is not Python 3 stays as it is
    subprocess.run([str(python), "-m", "compileall", "-q", *how, str(root)], check=False)
    launcher = root / NAME
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    for text in BESIDE:
        shutil.copy(ROOT / text, root)
    return packed(root, wheels / f"{NAME}-linux-{os.uname().machine}.tar.gz")


def copy_python(target: Path) -> Path:
    """The interpreter, its standard library and the shared libraries of both; the path of the copy."""
    base, version = Path(sys.base_prefix), sysconfig.get_python_version()
    (target / "bin").mkdir(parents=True)
    python = target / "bin" / f"python{version}"
    shutil.copy((base / "bin" / f"python{version}").resolve(), python)
    (target / "bin" / "python3").symlink_to(python.name)
    library = target / "lib" / f"python{version}"
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=ignore)
    (library / "site-packages").mkdir()
    for licence in (*base.glob("LICENSE*"), *Path(sysconfig.get_path("stdlib")).glob("LICENSE*")):
        shutil.copy(licence, library)
    bring_libraries([python, *library.rglob("*.so")], target / "lib")
    return python


def bring_libraries(files: list[Path], folder: Path) -> None:
    """Copy what they link to, with its licence, and have them look there first."""
    licences = folder / "licences"
    for file in files:
        found = dict(linked(file))
        if found:
            origin = os.path.relpath(folder, file.parent)
            subprocess.run(["patchelf", "--set-rpath", f"$ORIGIN/{origin}", file], check=True)
        for name, path in found.items():
            if not (folder / name).exists():
                shutil.copy(path, folder / name)
                subprocess.run(["patchelf", "--set-rpath", "$ORIGIN", folder / name], check=True)
                keep_licence(path, licences)


def linked(file: Path) -> Iterator[tuple[str, Path]]:
    """Names and places of all that a file needs, directly or not, but the C library's parts."""
    said = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout
    for name, place in re.findall(r"^\s*(\S+) => (/\S+)", said, re.M):
        if not OF_EVERY_LINUX.match(name):
            yield name, Path(place)


def keep_licence(library: Path, folder: Path) -> None:
    """As Debian keeps it by package; a library from elsewhere has its licence beside Python's."""
    if not shutil.which("dpkg"):
        return
    found = subprocess.run(["dpkg", "-S", library.resolve()], capture_output=True, text=True)
    if found.returncode:
        return
    package = found.stdout.split(":")[0]
    folder.mkdir(exist_ok=True)
    shutil.copy(f"/usr/share/doc/{package}/copyright", folder / f"{package}.txt")


def packed(root: Path, archive: Path) -> Path:
    """Owned by nobody in particular, and without the time of the packing: equal content is equal bytes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = 0
        return entry

    with (
        gzip.GzipFile(archive, "wb", compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        tar.add(root, arcname=root.name, filter=plain)
    return archive
