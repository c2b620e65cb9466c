"""The documentation as a site: every page and link is there, and so is every route."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from gguf_imagegen.api.app import ROUTES
from scripts.docs_site import ROOT, prepare, relinked


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    prepare(folder)
    return folder


def test_links_lead_somewhere(source: Path) -> None:
    """Between pages and to files of the repository, which the site carries."""
    for page in source.rglob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            assert re.match(r"\w+:", link) or (page.parent / link).is_file(), f"{page.name}: {link}"


def test_every_page_has_a_place(source: Path) -> None:
    """In the navigation, once, and nothing else is there."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named: list[str] = []
    for entry in yaml.safe_load(config)["nav"]:
        for value in entry.values():
            named.extend(value if isinstance(value, list) else [value])
    assert sorted(named) == sorted(page.name for page in source.glob("*.md"))


def test_the_reference_has_every_route(source: Path) -> None:
    """And what it calls a schema is described on the same page."""
    text = (source / "reference.md").read_text(encoding="utf-8")
    for route in ROUTES:
        if route.path.startswith(("/v1/", "/sdapi/", "/sdcpp/")):
            assert f"### {route.method} {route.path}\n" in text
    links, anchors = (
        set(re.findall(pattern, text)) for pattern in (r"\(#(schema-[\w-]+)", r"\{#(schema-[\w-]+)")
    )
    assert links <= anchors


def test_links_are_changed(tmp_path: Path) -> None:
    """A file is carried along, a folder is a word, a page outside docs/ is the site's."""
    text = "[a](../pyproject.toml) [b](../tests/) [c](../README.md#start) [d](api.md#x) [e](https://example.org/a)"
    assert relinked(text, ROOT / "docs", tmp_path) == (
        "[a](files/pyproject.toml) b [c](index.md#start) [d](api.md#x) [e](https://example.org/a)"
    )
    assert (tmp_path / "files" / "pyproject.toml").is_file()
