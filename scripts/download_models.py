#!/usr/bin/env python3
"""Fetch models of the catalog, as `gguf-imagegen pull` does, with the Python of the package's environment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gguf_imagegen.catalog.parse import CatalogError
from gguf_imagegen.commands.pull import pull
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch models of the catalog.")
    parser.add_argument("models", nargs="+", metavar="ID[:QUANT]")
    parser.add_argument("--models-dir", type=Path, help="folder of the model files")
    parser.add_argument("--catalog", type=Path, help="catalog file that adds to the built-in one")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    names = given.pop("models")
    settings = Settings(**given)
    for name in names:
        try:
            code = pull(settings, name)
        except (ImagegenError, CatalogError, OSError) as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            code = 1
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
