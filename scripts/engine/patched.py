"""Install the engine with our kernels, built from the binding's source archive; as it comes where that fails.

Called by `scripts/install`, before anything but pip is there; CMAKE_ARGS of the environment are CMake's.
While the compiler is at work pip installs what the package needs beside it.
A build without the kernels is never refused: `--note` names the file that then says why, for the doctor.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from scripts.engine import vocabularies
from scripts.engine.others import others

HERE: Final = Path(__file__).parent
ENGINE: Final = "stable-diffusion-cpp-python"
HOOKS: Final = tuple(sorted((HERE / "hooks").glob("*.patch")))
KERNELS: Final = tuple(sorted((HERE / "kernels").iterdir()))
GGML_CPU: Final = "vendor/stable-diffusion.cpp/ggml/src/ggml-cpu"
PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
LOADS: Final = "import stable_diffusion_cpp.stable_diffusion_cpp as low; low._lib.ggml_packed_kernels"


class Unpatched(Exception):
    """The kernels cannot be built in; the message says why, in a few words."""


def contents() -> bytes:
    """All that makes a difference to what is built."""
    return b"".join(path.read_bytes() for path in [HERE / "requirements.txt", *HOOKS, *KERNELS])


def source_tree(folder: Path) -> Path:
    """The binding's source with our kernels, unpacked in `folder`. Raises Unpatched."""
    if shutil.which("patch") is None:
        raise Unpatched("the command `patch` is not installed")
    return patched(unpacked(fetched(folder), folder))


def fetched(folder: Path) -> Path:
    """The archive, whose hash pip compares."""
    pinned = ["-r", str(HERE / "requirements.txt"), "--no-binary", ENGINE]
    fetching = run([*PIP, "--quiet", "download", "--no-deps", *pinned, "--dest", str(folder)])
    if fetching.returncode:
        reason = "does not have the pinned hash" if "HASHES" in fetching.stderr else "cannot be downloaded"
        raise Unpatched(f"the engine's source archive {reason}")
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Python 3.10.12 and later
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(folder)
    (tree,) = (each for each in folder.iterdir() if each.is_dir())
    return tree


def patched(tree: Path) -> Path:
    """The same tree with hooks and kernels: each hook is tried first, and must fit to the line."""
    for hook in HOOKS:
        command = ["patch", "--strip=1", "--fuzz=0", "--batch", f"--input={hook}"]
        for dry in (["--dry-run"], []):
            if run([*command, *dry], tree).returncode:
                raise Unpatched(f"{hook.name} does not fit the engine's source")
    for kernel in KERNELS:
        shutil.copy(kernel, tree / GGML_CPU)
    vocabularies.embed(tree)
    return tree


def run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What it says goes to the terminal, too, if it fails."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        print(ran.stdout, ran.stderr, sep="", file=sys.stderr)
    return ran


def install(what: str) -> bool:
    """Compile and install a folder or a requirement; whether that went well."""
    command = [*PIP, "install", "--no-cache-dir", "--force-reinstall", "--no-deps", what]
    return subprocess.run(command).returncode == 0


@contextlib.contextmanager
def installing(requirements: Sequence[str]) -> Iterator[None]:
    """Meanwhile pip installs these; what goes wrong is told when the package itself is installed."""
    command = [*PIP, "install", "--quiet", "--no-warn-conflicts", *requirements]
    pip = subprocess.Popen(command, stderr=subprocess.DEVNULL) if requirements else None
    try:
        yield
    finally:
        if pip is not None:
            pip.wait()


def install_patched(requirements: Sequence[str]) -> None:
    """Raises Unpatched, also for a library that does not load."""
    with installing(requirements), tempfile.TemporaryDirectory(prefix="gguf-imagegen-engine-") as folder:
        if not install(str(source_tree(Path(folder)))):
            raise Unpatched("the engine does not compile with them")
    if run([*PIP, "install", "--quiet", ENGINE]).returncode:  # what it needs: nothing is there in a new .venv
        raise Unpatched("what the engine needs cannot be installed")
    if run([sys.executable, "-c", LOADS], Path(sys.base_prefix)).returncode:
        raise Unpatched("the engine's library does not load with them")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--otherwise", required=True, help="what pip installs where the kernels cannot be built in"
    )
    parser.add_argument("--note", type=Path, required=True, help="file for the reason")
    parser.add_argument("--extra", default="", help="of the package, whose needs are installed meanwhile")
    options = parser.parse_args()
    options.note.unlink(missing_ok=True)
    try:
        install_patched(others(ENGINE, options.extra))
    except Unpatched as exc:
        print(f"scripts/install: the engine is built without its fast kernels: {exc}", file=sys.stderr)
        if not install(options.otherwise):
            sys.exit(1)
        options.note.write_text(f"{exc}\n")


if __name__ == "__main__":
    main()
