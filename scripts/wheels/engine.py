"""The engine's wheel: the binding as it is, with a library for each level of CPU.

One build folder serves all levels: they differ in ggml's CPU part alone, so that the rest is compiled once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.engine import patched
from scripts.engine.wheels import source_digest
from scripts.wheels.levels import Level

PACKAGE: Final = "stable_diffusion_cpp"
DISTRIBUTION: Final = "stable_diffusion_cpp_python"
LIBRARY: Final = "libstable-diffusion.so"
"""What the binding loads where nobody names another one: the lowest level."""
MANIFEST: Final = "levels.json"
GPU: Final = {"cpu": (), "cuda": ("-DSD_CUDA=ON",), "vulkan": ("-DSD_VULKAN=ON",)}
DRIVERS: Final = ("libcuda.so.1", "libcublas.so.*", "libcublasLt.so.*", "libcudart.so.*", "libvulkan.so.1")
"""Come with a GPU's driver or toolkit, never with a wheel."""
LICENCES: Final = {
    "LICENSE-binding.txt": "LICENSE",
    "LICENSE-stable-diffusion.cpp.txt": "vendor/stable-diffusion.cpp/LICENSE",
    "LICENSE-ggml.txt": "vendor/stable-diffusion.cpp/ggml/LICENSE",
    "LICENSE-darts-clone.txt": "vendor/stable-diffusion.cpp/thirdparty/LICENSE.darts_clone.txt",
}
"""In the wheel, by its name there: the text of the source that it is of."""
NOTICE: Final = """\
In this wheel beside what its other licence texts are of:

GNU libgomp, a shared library of its own in stable_diffusion_cpp_python.libs, from the compiler of the
machine that built it: Free Software Foundation, GPL-3.0-or-later with the GCC Runtime Library Exception 3.1
(https://www.gnu.org/licenses/gcc-exception-3.1.html).
JSON for Modern C++, miniz and llamafile's matrix products: MIT. stb and zip: public domain.
"""


def build(levels: Sequence[Level], backend: str, work: Path, target: Path) -> Path:
    """The audited wheel, in `target`. Raises Unpatched, CalledProcessError."""
    tree = source_in(work / "source")
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-wheel-") as folder:
        wheel = Path(folder) / "wheel"
        lay_out(tree, wheel, backend, levels)
        for level in levels:
            library = compiled(tree, level, backend, work)
            name = LIBRARY if level is levels[-1] else level.file
            shutil.copy(library, wheel / PACKAGE / "lib" / name)
        subprocess.run([sys.executable, "-m", "wheel", "pack", wheel, "--dest-dir", folder], check=True)
        (made,) = Path(folder).glob("*.whl")
        return audited(made, target)


def source_in(folder: Path) -> Path:
    """The source with our kernels, unpacked again only where something of it has changed."""
    stamp = folder / "digest"
    if not stamp.is_file() or stamp.read_text() != source_digest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        patched.source_tree(folder)
        stamp.write_text(source_digest())
    (tree,) = (each for each in folder.iterdir() if each.is_dir())
    return tree


def compiled(tree: Path, level: Level, backend: str, work: Path) -> Path:
    """The library of one level, kept for the next time; levels share all objects but ggml's CPU part."""
    folder = (work / f"objects-{backend}").resolve()
    configure: list[str | Path] = [
        "cmake", "-S", tree, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=OFF", "-DGGML_LLAMAFILE=ON",
        f"-DSKBUILD_PLATLIB_DIR={folder / 'installed'}", *GPU[backend], *level.cmake,
        *os.environ.get("CMAKE_ARGS", "").split(),
    ]  # fmt: skip
    key = hashlib.sha256(f"{source_digest()} {configure}".encode()).hexdigest()[:12]
    kept = work / f"{backend}-{level.name}-{key}.so"
    if kept.is_file():
        return kept
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    print(f"compiling {level.name} for {backend} ...", file=sys.stderr, flush=True)
    subprocess.run(["cmake", "--build", folder, "--target", "stable-diffusion"], check=True)
    (library,) = folder.rglob(LIBRARY)
    return Path(shutil.copy(library, kept.with_suffix(".part"))).replace(kept)


def lay_out(tree: Path, wheel: Path, backend: str, levels: Sequence[Level]) -> None:
    """Everything of the wheel but its libraries, unpacked."""
    shutil.copytree(tree / PACKAGE, wheel / PACKAGE, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    library = wheel / PACKAGE / "lib"
    library.mkdir()
    (library / MANIFEST).write_text(json.dumps(manifest(backend, levels), indent=1))
    about = (tree / "PKG-INFO").read_text(encoding="utf-8")
    version = next(line.split()[1] for line in about.splitlines() if line.startswith("Version: "))
    info = wheel / f"{DISTRIBUTION}-{version}.dist-info"
    licences = info / "licenses"
    licences.mkdir(parents=True)
    (info / "METADATA").write_text(about, encoding="utf-8")
    lines = ["Wheel-Version: 1.0", "Generator: gguf-imagegen", "Root-Is-Purelib: false"]
    lines += [f"Tag: py3-none-linux_{os.uname().machine}", f"Build: 1{backend}", ""]
    (info / "WHEEL").write_text("\n".join(lines))
    for name, text in LICENCES.items():
        shutil.copy(tree / text, licences / name)
    shutil.copy(patched.HERE / "LICENSE", licences / "LICENSE-kernels.txt")
    (licences / "NOTICE-libgomp.txt").write_text(NOTICE)


def manifest(backend: str, levels: Sequence[Level]) -> dict[str, object]:
    """What `gguf_imagegen.machine.levels` reads, best level first, and what the wheel was made of."""
    listed = [
        {
            "name": level.name,
            "file": LIBRARY if level is levels[-1] else level.file,
            "needs": list(level.needs),
        }
        for level in levels
    ]
    return {"backend": backend, "source": source_digest(), "levels": listed}


def audited(wheel: Path, target: Path) -> Path:
    """With the libraries that not every Linux has, and the tag of the oldest glibc that it runs on."""
    for old in target.glob(f"{DISTRIBUTION}-*.whl"):
        old.unlink()
    excluded = [word for name in DRIVERS for word in ("--exclude", name)]
    subprocess.run(
        [sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", target, wheel],
        check=True,
    )
    (made,) = target.glob(f"{DISTRIBUTION}-*.whl")
    return made
