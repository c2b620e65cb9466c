"""MkDocs builds the site: with --all, for it takes a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from scripts.docs_site import ROOT, prepare


def test_the_site_is_built(tmp_path: Path) -> None:
    """MkDocs builds it strictly: links, anchors and navigation hold."""
    source = tmp_path / "source"
    prepare(source)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    config.update(docs_dir=str(source), site_dir=str(tmp_path / "site"))
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "site" / "reference" / "index.html").is_file()
    assert (tmp_path / "site" / "search" / "search_index.json").is_file()
