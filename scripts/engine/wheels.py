"""Install the engine from a wheel that `scripts/build_wheels` made of this source, without compiling.

    python -m scripts.engine.wheels FOLDER|URL [--backend cpu|cuda|vulkan]
    python -m scripts.engine.wheels --check

Beside the wheels lies SHA256SUMS. The exit code is 1, with the reason, where no wheel fits. `--check` is for
when the package is installed too: it draws the golden picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

from scripts.engine.patched import ENGINE, PIP, contents, run

SUMS: Final = "SHA256SUMS"
MANIFEST: Final = "stable_diffusion_cpp/lib/levels.json"
TIMEOUT: Final = 60.0
LARGEST: Final = 500_000_000


class Unfit(Exception):
    """No wheel can be used; the message says why, in a few words."""


def source_digest() -> str:
    """Of the pinned archive and all that is added to it: equal where a wheel is of this checkout."""
    return hashlib.sha256(contents()).hexdigest()


def install_from(where: str, backend: str, machine: str) -> str:
    """The name of the wheel that is now installed. Raises Unfit."""
    names = named(read(where, SUMS).decode(errors="replace"), backend, machine)
    if not names:
        raise Unfit(f"{where} has no wheel of the engine for {machine} with {backend}")
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-wheel-") as folder:
        for name, digest in names.items():
            wheel = Path(folder) / name
            wheel.write_bytes(read(where, name))
            require_fit(wheel, digest)
            command = [*PIP, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
            if run(command).returncode == 0:
                return name
    raise Unfit(f"pip does not take {', '.join(names)} on this machine")


def named(sums: str, backend: str, machine: str) -> dict[str, str]:
    """The hashes of the engine's wheels for a machine, by name; build tags begin with a digit."""
    lines = [line.split() for line in sums.splitlines() if len(line.split()) == 2]
    start, end = ENGINE.replace("-", "_") + "-", f"_{machine}.whl"
    return {
        name.removeprefix("*"): digest
        for digest, name in lines
        if name.removeprefix("*").startswith(start) and f"-1{backend}-" in name and name.endswith(end)
    }


def read(where: str, name: str) -> bytes:
    """A file of the folder or below the address. Raises Unfit."""
    try:
        if where.startswith(("http://", "https://")):
            with urllib.request.urlopen(urljoin(where.rstrip("/") + "/", name), timeout=TIMEOUT) as answer:
                return bytes(answer.read(LARGEST))
        return (Path(where) / name).read_bytes()
    except OSError as exc:
        raise Unfit(f"{name} cannot be read from {where}: {exc}") from exc


def require_fit(wheel: Path, digest: str) -> None:
    """Raises Unfit for another hash than the list's, and for a wheel of another source."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
        raise Unfit(f"{wheel.name} does not have the hash that {SUMS} names")
    try:
        with zipfile.ZipFile(wheel) as archive:
            source = json.loads(archive.read(MANIFEST))["source"]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as exc:
        raise Unfit(f"{wheel.name} does not say what it was made of") from exc
    if source != source_digest():
        raise Unfit(f"{wheel.name} was made of another source or with other kernels than this checkout's")


def draws_the_golden_picture() -> bool:
    """Any of its builds; for the interpreter that has engine and package."""
    from gguf_imagegen.engines.sdcpp.choice import NONE_RIGHT, choose_build
    from gguf_imagegen.settings import Settings

    chosen = choose_build(Settings())
    return chosen is None or NONE_RIGHT not in chosen.why


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("where", nargs="?", metavar="FOLDER|URL")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--check", action="store_true", help="draw the golden picture")
    options = parser.parse_args()
    try:
        if options.check and not draws_the_golden_picture():
            raise Unfit("no build of the wheel draws the golden picture")
        if options.where:
            print(f"installed {install_from(options.where, options.backend, platform.machine())}")
    except Unfit as exc:
        print(f"scripts/install: the engine's wheel is not used: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
