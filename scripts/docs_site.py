"""What the documentation's site is built from: README, docs/, files they link to, a reference of the API.

python -m scripts.docs_site FOLDER, which scripts/build_docs calls; mkdocs.yml says the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_imagegen.api.app import DIALECTS, OURS
from gguf_imagegen.api.dialect import Dialects
from gguf_imagegen.api.openapi.document import document
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Pages beside docs/, by what they are called in the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
MOST = 12
"""Values of an enumeration that are shown."""
FILES = "files"
"""Where files of the repository that are no pages lie in the site."""


def prepare(target: Path) -> None:
    """Fill a new folder with all pages, their links changed to what the site has."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for source in [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in PAGES)]:
        text = source.read_text(encoding="utf-8")
        page = target / PAGES.get(source.name, source.name)
        page.write_text(relinked(text, source.parent, target), encoding="utf-8")
    described = document(Dialects([*OURS, *DIALECTS]).every, Settings(), ABILITIES)
    (target / "openapi.json").write_text(json.dumps(described), encoding="utf-8")
    (target / "reference.md").write_text("\n".join(reference(described)) + "\n", encoding="utf-8")


def relinked(text: str, folder: Path, target: Path, up: str = "") -> str:
    """The text of a page of this folder; files it links to are copied, links to folders become words.

    `up` leads from the page's place in the site to its root.
    """

    def changed(found: re.Match[str]) -> str:
        bang, words, link, anchor = found.groups()
        if re.match(r"\w+:", link):
            return found[0]
        path = Path(os.path.normpath(folder / link))
        if path.is_dir():
            return str(words)
        return f"{bang}[{words}]({up}{_in_site(path, target)}{anchor or ''})"

    return LINK.sub(changed, text)


def _in_site(path: Path, target: Path) -> str:
    inside = path.relative_to(ROOT).as_posix()
    if inside in PAGES:
        return PAGES[inside]
    if inside.startswith("docs/"):
        return inside.removeprefix("docs/")
    name = f"{FILES}/{inside.lstrip('.')}"
    copy = target / name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.suffix == ".md":
            text = relinked(path.read_text(encoding="utf-8"), path.parent, target, "../" * name.count("/"))
            copy.write_text(text, encoding="utf-8")
    return name


# -- the reference ---------------------------------------------------------------------------------------


def reference(described: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: operations by API, then what they take and give. Lines."""
    yield f"# API reference\n\n{described['info']['description']}\n"
    yield "Made from the [OpenAPI document](openapi.json); a server's own is at `/docs`.\n"
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for tag, operations in by_tag.items():
        yield f"## {tag}\n"
        for method, path, operation in operations:
            yield from _operation(method, path, operation)
    yield "## Schemas\n"
    for name, schema in sorted(described["components"]["schemas"].items()):
        yield from _schema(name, schema)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method} {path}\n"
    if words := operation.get("description") or operation.get("summary"):
        yield f"{_one_line(words)}\n"
    rows = [
        (f"`{each['name']}`", each["in"], _type(each.get("schema", {})), each.get("description", ""))
        for each in operation.get("parameters", ())
        if "name" in each
    ]
    yield from _table(("parameter", "in", "type", ""), rows)
    contents = operation.get("requestBody", {}).get("content", {})
    bodies = {kind: _type(content.get("schema", {})) for kind, content in contents.items()}
    yield from _table(("body", ""), ((f"`{kind}`", name) for kind, name in bodies.items()))
    answers = []
    for status, answer in operation["responses"].items():
        kinds = [
            f"`{kind}` {_type(each.get('schema', {}))}" for kind, each in answer.get("content", {}).items()
        ]
        answers.append((status, ", ".join(kinds), answer.get("description", "")))
    yield from _table(("status", "", ""), answers)


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name} {{#{_anchor(name)}}}\n"
    if words := schema.get("description"):
        yield f"{_one_line(words)}\n"
    required = set(schema.get("required", ()))
    rows = [
        (f"`{field}`", "yes" if field in required else "", _type(each), each.get("description", ""))
        for field, each in schema.get("properties", {}).items()
    ]
    yield from _table(("field", "required", "type", ""), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """In words, with links to what has a name."""
    if name := str(schema.get("$ref", "")).rpartition("/")[2]:
        return f"[{name}](#{_anchor(name)})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"][:12]) + (
            ", …" if len(schema["enum"]) > 12 else ""
        )
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return kind if isinstance(kind, str) else " or ".join(kind)


def _anchor(name: str) -> str:
    return "schema-" + re.sub(r"[^a-z0-9]+", "-", name.lower())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [" | ".join(_one_line(cell).replace("|", "\\|") for cell in row) for row in rows]
    if lines:
        yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
        yield from (f"| {line} |" for line in lines)
        yield ""


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
