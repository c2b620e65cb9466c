"""A folder of wheels as an index: pages that pip and uv read (PEP 503), and the hashes of all files."""

from __future__ import annotations

import hashlib
import html
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SUMS: Final = "SHA256SUMS"
RELEASED: Final = ("*.whl", "*.tar.gz", "*.cdx.json")
PAGE: Final = "<!DOCTYPE html>\n<html><body>\n{lines}\n</body></html>\n"


def write_index(folder: Path) -> None:
    """`simple/` beside the wheels, to be served or read as a file, and SHA256SUMS of all that is released."""
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in RELEASED
        for path in sorted(folder.glob(pattern))
    }
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
    projects: dict[str, list[str]] = {}
    for name in hashes:
        if name.endswith(".whl"):
            projects.setdefault(normalized(name.split("-")[0]), []).append(name)
    for project, names in projects.items():
        links = (f"../../{name}#sha256={hashes[name]}" for name in names)
        page(folder / "simple" / project, zip(links, names, strict=True))
    page(folder / "simple", ((f"{project}/", project) for project in projects))


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def page(folder: Path, links: Iterable[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f'<a href="{html.escape(link)}">{html.escape(words)}</a><br>' for link, words in links)
    (folder / "index.html").write_text(PAGE.format(lines="\n".join(lines)))


if __name__ == "__main__":
    write_index(Path(sys.argv[1]))
