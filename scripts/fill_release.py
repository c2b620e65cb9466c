#!/usr/bin/env python3
"""Fills in what goes with a release: the files of package managers, with version, addresses and hashes of its
archives, and notes.md, which is what docs/changes.md says of it.

scripts/fill_release.py FOLDER VERSION https://github.com/OWNER/gguf-imagegen
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from string import Template

TEMPLATES = ("homebrew/gguf-imagegen.rb", "winget/GgufImagegen.yaml")
WINDOWS = "gguf-imagegen-windows-x86_64.zip"


def fill(templates: Path, folder: Path, version: str, home: str) -> list[Path]:
    """Write the files whose archives are in `folder` beside them; their paths."""
    values = {"version": version, "home": home}
    for name, file in (("sdist", f"gguf_imagegen-{version}.tar.gz"), ("windows", WINDOWS)):
        if (folder / file).is_file():
            values[f"{name}_url"] = f"{home}/releases/download/v{version}/{file}"
            values[f"{name}_sha256"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return [each for name in TEMPLATES if (each := _filled(templates / name, folder, values))]


def _filled(template: Path, folder: Path, values: dict[str, str]) -> Path | None:
    text = Template(template.read_text(encoding="utf-8"))
    try:
        filled = text.substitute(values)
    except KeyError:  # its archive is no part of this release
        return None
    target = folder / template.name
    target.write_text(filled, encoding="utf-8")
    return target


def notes(changes: str, version: str, home: str) -> str:
    """What is under a version's heading, with links that hold elsewhere. Raises ValueError without one."""
    found = re.search(rf"^## {re.escape(version)}$(.*?)(?=^## |\Z)", changes, re.M | re.S)
    if not found:
        raise ValueError(f"docs/changes.md has no heading ## {version}")
    folder = f"{home}/blob/v{version}/docs/"
    return re.sub(r"\]\((?!\w+:)", f"]({folder}", found[1]).strip() + "\n"


def main(folder: Path, version: str, home: str) -> None:
    root = Path(__file__).parents[1]
    text = notes((root / "docs" / "changes.md").read_text(encoding="utf-8"), version, home)
    (folder / "notes.md").write_text(text, encoding="utf-8")
    print(*fill(root / "deploy", folder, version, home), folder / "notes.md", sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    except ValueError as exc:
        sys.exit(f"scripts/fill_release.py: {exc}")
