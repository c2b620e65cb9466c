"""`python -m scripts.wine FOLDER`: `python.exe` with its libraries there, of the version that runs this.

FOLDER has `panda3d-*.whl`, whose DLLs are CPython's, and `site`, the packages for Windows. The standard
library is this Python's own. `ziglang` compiles what no wheel has: python.exe, and python3.dll, which names
the functions of the other DLL; and NumPy gets the functions that Wine lacks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
VERSION: Final = f"{sys.version_info.major}{sys.version_info.minor}"
ZIG: Final = (sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-O1")
OF_WINDOWS: Final = "deploy_libs/"
"""The folder of panda3d's wheel; what begins with `api-ms` there Wine has itself."""
BESIDE: Final = (f"python{VERSION}.dll", "VCRUNTIME140.dll")
LEFT_OUT: Final = ("site-packages", "test", "__pycache__", "lib-dynload", "config-*", "idlelib")
MATH: Final = ("api-ms-win-crt-math-l1-1-0.dll", "own-ms-win-crt-math-l1-1-0.dll")
"""The C runtime's part that NumPy imports, and the name of ours, as long."""
OWN: Final = re.compile(r"\bown_(\w+)")


def main() -> None:
    folder = Path(sys.argv[1])
    python = folder / "python"
    (wheel,) = folder.glob(f"panda3d-*-cp{VERSION}-*.whl")
    (python / "DLLs").mkdir(parents=True, exist_ok=True)
    unpack(wheel, python)
    library = python / "Lib"
    shutil.rmtree(library, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns(*LEFT_OUT))
    compile_python(python)
    give_numpy_its_functions(folder / "site", python)


def unpack(wheel: Path, python: Path) -> None:
    """CPython's DLLs and extension modules."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = name.removeprefix(OF_WINDOWS)
            if file != name and file and not file.startswith("api-ms"):
                place = python if file in BESIDE else python / "DLLs"
                (place / file).write_bytes(archive.read(name))


def compile_python(python: Path) -> None:
    """python.exe, and python3.dll for modules of any version: its names lead to the DLL of this one."""
    dll = f'-DPYTHON_DLL=L"python{VERSION}.dll"'
    subprocess.run([*ZIG, "-municode", dll, "-o", python / "python.exe", HERE / "python.c"], check=True)
    names = exported(tables(python / f"python{VERSION}.dll"))
    link(python / "python3.dll", {name: f"python{VERSION}.{name}" for name in names})


def give_numpy_its_functions(site: Path, python: Path) -> None:
    """Its modules import the C runtime's mathematics from a DLL of ours, which has or passes on all of it."""
    theirs, ours = MATH
    own = OWN.findall((HERE / "complex.c").read_text(encoding="utf-8"))
    wanted: set[str] = set()
    for module in (site / "numpy").rglob("*.pyd"):
        wanted |= imported(tables(module), theirs) | imported(tables(module), ours)
        module.write_bytes(module.read_bytes().replace(theirs.encode(), ours.encode()))
    passed = {name: f"ucrtbase.{name}" for name in wanted}
    link(python / ours, passed | {name: f"own_{name}" for name in own}, HERE / "complex.c")


def link(dll: Path, names: dict[str, str], source: Path | None = None) -> None:
    """A DLL that exports these names, each of which stands for another of its own or of another DLL."""
    definition, empty = dll.with_suffix(".def"), dll.with_suffix(".c")
    lines = (f"  {name}={target}\n" for name, target in sorted(names.items()))
    definition.write_text(f"LIBRARY {dll.name}\nEXPORTS\n{''.join(lines)}", encoding="utf-8")
    empty.write_text("int nothing;\n", encoding="utf-8")
    subprocess.run([*ZIG, "-shared", "-o", dll, source or empty, definition], check=True)


def exported(said: str) -> list[str]:
    """The names in the tables of a DLL."""
    _, _, rest = said.partition("[Ordinal/Name Pointer] Table\n")
    return re.findall(r"^\s+\[\s*\d+\].*\s(\w+)$", rest, re.M)


def imported(said: str, dll: str) -> set[str]:
    """The names in the tables of a module that it takes from a DLL."""
    _, _, rest = said.partition(f"DLL Name: {dll}\n")
    return set(re.findall(r"^\t.*\s(\w+)$", rest.partition("DLL Name:")[0], re.M))


def tables(file: Path) -> str:
    """As objdump prints what a file exports and imports."""
    return subprocess.run(["objdump", "-p", file], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
