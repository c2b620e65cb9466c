"""`scripts/build_wheels`: the engine's wheel, the package's, an index, and the archive with Python."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from scripts.engine.patched import Unpatched
from scripts.wheels import engine
from scripts.wheels.archive import build_archive
from scripts.wheels.index import write_index
from scripts.wheels.levels import levels_for

ROOT: Final = Path(__file__).resolve().parents[2]
LARGEST: Final = 60_000_000
"""Bytes of the engine's wheel for CPUs."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/build_wheels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", choices=engine.GPU, default="cpu")
    parser.add_argument("--levels", default="", help="comma-separated; all of this machine if not given")
    parser.add_argument("--archive", action="store_true", help="pack Python and all packages, too")
    parser.add_argument("--to", type=Path, help="folder for what is made: dist, of a GPU dist/BACKEND")
    options = parser.parse_args()
    # apart from each other: of two engines of one version pip would take whichever is the last by name
    options.to = options.to or ROOT / "dist" / ("" if options.backend == "cpu" else options.backend)
    options.to.mkdir(parents=True, exist_ok=True)
    work = ROOT / "build" / "wheels"
    try:
        levels = levels_for(os.uname().machine, options.levels)
        made = [engine.build(levels, options.backend, work, options.to), package(options.to)]
        if options.backend == "cpu" and made[0].stat().st_size > LARGEST:
            raise ValueError(f"{made[0].name} has {made[0].stat().st_size:,} bytes, more than {LARGEST:,}")
        if options.archive:
            made.append(build_archive(options.to, work))
    except (Unpatched, ValueError) as exc:
        print(f"scripts/build_wheels: {exc}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        print(f"scripts/build_wheels: {exc.cmd[0]} ended with code {exc.returncode}", file=sys.stderr)
        return 1
    write_index(options.to)
    for path in made:
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
    return 0


def package(target: Path) -> Path:
    """The wheel of this package, any machine's."""
    for old in target.glob("gguf_imagegen-*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", target, ROOT], check=True)
    (made,) = target.glob("gguf_imagegen-*.whl")
    return made


if __name__ == "__main__":
    sys.exit(main())
