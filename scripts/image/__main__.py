"""`scripts/try_image`: build the image of the Dockerfile in chroots, and run it."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from scripts.image import container
from scripts.image.build import ROOT, Builder, Image, inside
from scripts.image.dockerfile import stages

DOCKERFILE: Final = ROOT / "deploy" / "container" / "Dockerfile"
SBOM: Final = "org.cyclonedx.sbom"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/try_image", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder of wheels; without it they are compiled")
    options = parser.parse_args()
    work = ROOT / "build" / "fresh"
    work.mkdir(parents=True, exist_ok=True)
    given = {"wheels-cpu": options.wheels.resolve()} if options.wheels else {}
    try:
        image = Builder(stages(DOCKERFILE.read_text(encoding="utf-8")), work, given).build("cpu")
        said = json.loads(inside(image.root, image.labels[SBOM]).read_text(encoding="utf-8"))
        print(f"{size_of(image) / 1e6:.0f} MB, {len(said['components'])} packages in its list")
        container.run(image)
    except subprocess.CalledProcessError as exc:
        print(f"scripts/try_image: a step ended with code {exc.returncode}", file=sys.stderr)
        return 1
    finally:
        for left in work.glob("image-*"):
            shutil.rmtree(left, ignore_errors=True)
    return 0


def size_of(image: Image) -> int:
    """Bytes of its files."""
    said = subprocess.run(["du", "-sbx", image.root], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[0])


if __name__ == "__main__":
    sys.exit(main())
