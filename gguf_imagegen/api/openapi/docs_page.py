"""The OpenAPI document as a page to read: plain HTML, no script, nothing from elsewhere. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]

EXAMPLE_BASE = "http://127.0.0.1:8080"
"""Stands in the examples for the server that is asked; who sends the page puts the address there."""

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #06c; }
@media (prefers-color-scheme: dark) { :root { --accent: #6bf; } }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--accent); }
code, pre { font: 0.875rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: 0.75rem; border-radius: 0.25rem; white-space: pre-wrap; }
details { border: 1px solid var(--line); border-radius: 0.25rem; margin: 0.5rem 0; padding: 0 0.75rem; }
summary { padding: 0.5rem 0; cursor: pointer; overflow-wrap: anywhere; }
summary b { color: var(--accent); }
dl { margin: 0 0 1rem; }
dt { margin-top: 0.5rem; }
dd { margin: 0 0 0 1rem; }
nav ul { columns: 12rem; padding-left: 1.25rem; }
"""


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    tags = [tag["name"] for tag in document["tags"]]
    sections = "".join(_section(tag, document) for tag in tags)
    program = 'For programs: <a href="openapi.json">openapi.json</a>.'
    links = "".join(f'<li><a href="#{_anchor(tag)}">{escape(tag)}</a></li>' for tag in tags)
    title = escape(f"{info['title']} {info['version']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><header><h1>{title}</h1>"
        f"<p>{_prose(info['description'])} {program}</p></header>"
        f'<nav aria-label="Contents"><ul>{links}<li><a href="#objects">Objects</a></li></ul></nav>'
        f"<main>{sections}{_objects(document)}</main></body></html>"
    )


def _section(tag: str, document: Mapping[str, Any]) -> str:
    routes = [
        _route(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]
    return f'<section id="{_anchor(tag)}"><h2>{escape(tag)}</h2>{"".join(routes)}</section>'


def _route(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{_prose(text)}</p>" for text in operation.get("description", "").split("\n\n") if text]
    if parameters := operation.get("parameters"):
        fields = {f"{each['name']} ({each['in']})": {**each["schema"], **_said(each)} for each in parameters}
        parts.append(f"<h3>Parameters</h3>{_fields(fields)}")
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        bodies = "".join(f"<li>{_code(kind)}: {_type(body['schema'])}</li>" for kind, body in content.items())
        parts.append(f"<h3>Body</h3><ul>{bodies}</ul>")
    answers = "".join(_answer(status, answer) for status, answer in operation["responses"].items())
    parts.append(f"<h3>Answers</h3><dl>{answers}</dl>")
    if example := content.get("application/json", {}).get("example"):
        parts.append(f"<h3>Example</h3><pre>{escape(_curl(path, method, example))}</pre>")
    head = f"<b>{method.upper()}</b> {_code(path)} {_prose(operation['summary'])}"
    name = escape(operation["operationId"])
    return f'<details id="{name}"><summary>{head}</summary>{"".join(parts)}</details>'


def _curl(path: str, method: str, example: object) -> str:
    """A command for the server at `EXAMPLE_BASE`; what stands in single quotes is JSON without any."""
    body = json.dumps(example, ensure_ascii=False)
    return f"curl -s -X {method.upper()} {EXAMPLE_BASE}{path} -d '{body}'"


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    schemas = {kind: body.get("schema", {}) for kind, body in answer.get("content", {}).items()}
    kinds = [
        f"{_code(kind)} {_type(schema) if schema else ''} {_prose(schema.get('description', ''))}"
        for kind, schema in schemas.items()
    ]
    lines = "".join(f"<dd>{kind}</dd>" for kind in kinds)
    return f"<dt><b>{escape(status)}</b> {_prose(answer['description'])}</dt>{lines}"


def _objects(document: Mapping[str, Any]) -> str:
    """Every named object with its fields. A form's fields are those of the JSON that it stands for."""
    blocks = []
    for name, schema in document["components"]["schemas"].items():
        text = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
        fields = _fields(schema.get("properties", {}), schema.get("required", ()))
        blocks.append(
            f'<details id="object-{escape(name)}"><summary><b>{escape(name)}</b></summary>'
            f"{text}{fields or _type(schema)}</details>"
        )
    return f'<section id="objects"><h2>Objects</h2>{"".join(blocks)}</section>'


def _fields(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> str:
    """A list of definitions; an alias stands with its field."""
    needed = set(required)
    aliases: dict[str, list[str]] = {}
    for name, schema in properties.items():
        if "x-alias-of" in schema:
            aliases.setdefault(schema["x-alias-of"], []).append(name)
    items = [
        _field(name, schema, aliases.get(name, []), name in needed)
        for name, schema in properties.items()
        if "x-alias-of" not in schema
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _field(name: str, schema: Schema, aliases: list[str], required: bool) -> str:
    words = [_type(schema)]
    if required:
        words.append("required")
    if "default" in schema:
        words.append(f"default {_code(json.dumps(schema['default']))}")
    if aliases:
        words.append(f"also {', '.join(map(_code, aliases))}")
    text = f"<dd>{_prose(schema['description'])}</dd>" if "description" in schema else ""
    inner = _fields(schema.get("properties", {}))
    nested = f"<dd>{inner}</dd>" if inner else ""
    return f"<dt>{_code(name)} {'; '.join(words)}</dt>{text}{nested}"


def _type(schema: Schema) -> str:
    """A schema in a few words: its type, range, choices."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        extra = f" with {', '.join(map(_code, schema['required']))}" if "required" in schema else ""
        return f'<a href="#object-{name}">{name}</a>{extra}'
    if "anyOf" in schema:
        kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(_type, kinds)))
    if "enum" in schema:
        return "one of " + ", ".join(_code(str(value)) for value in schema["enum"])
    if "const" in schema:
        return _code(str(schema["const"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_range(schema)}"
    kind = schema.get("type", "any value")
    names = [each for each in kind if each != "null"] if isinstance(kind, list) else [kind]
    return escape(" or ".join(names)) + _range(schema)


def _range(schema: Schema) -> str:
    signs = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}",
        "exclusiveMaximum": "below {}", "minItems": "at least {}", "maxItems": "at most {}",
        "maxLength": "at most {} characters", "pattern": "like {}",
    }  # fmt: skip
    said = [sign.format(schema[key]) for key, sign in signs.items() if key in schema]
    return f", {escape(' '.join(said))}" if said else ""


def _said(schema: Schema) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _prose(text: str) -> str:
    """Escaped text in which `x` is code."""
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _anchor(tag: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in tag.lower())
