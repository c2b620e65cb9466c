"""The OpenAPI 3.1 document of a server, from its dialects and the contracts of their handlers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from gguf_imagegen import __version__
from gguf_imagegen.api import answers
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.middleware import AZURE, is_open
from gguf_imagegen.api.openapi.contract import EVENTS, FORM, JSON, Contract, Param, contract_of, doc_of
from gguf_imagegen.api.openapi.schemas import (
    Schema,
    any_of,
    component_schemas,
    form_name,
    name_of,
    names_of_property,
    ref,
)
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.errors import Forbidden, ImagegenError, Unauthorized

INTRODUCTION = (
    "Pictures from GGUF diffusion models through stable-diffusion.cpp, in the words of several APIs. Unknown"
    " fields are ignored and named in `warnings`; a null is a field not said. Numbers may come as text."
)
EXAMPLE_BASE = "http://127.0.0.1:8080"
"""Stands for the address of the server that is asked; who sends the document puts it there."""
HEADERS: Mapping[str, Schema] = {
    "X-Request-ID": {"description": "the request's own, or one made for it", "schema": {"type": "string"}},
    "X-Job-Id": {"description": "the job that was made", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds", "schema": {"type": "integer"}},
}
WORDS = {200: "done", 202: "accepted", 304: "not modified", 308: "moved", 503: "not ready"}


def document(dialects: Sequence[Dialect], settings: Settings, able: Abilities) -> dict[str, Any]:
    """The whole document. Takes a while: call it in a thread."""
    table = [(dialect, route) for dialect in dialects for route in dialect.routes]
    contracts = [contract_of(route) or Contract() for _, route in table]
    requests = {each.request for each in contracts if each.request is not None}
    forms = {each.request for each in contracts if each.request is not None and each.form}
    given = {each.answer for each in contracts if each.answer is not None}
    given |= {model for each in contracts for model in each.also.values() if model is not None}
    given |= {each.dry_run for each in contracts if each.dry_run is not None}
    given |= {dialect.errors.model for dialect, _ in table} | {answers.ServerSentEvent}
    describe = [each.describe for each in dialects if each.describe is not None]
    schemas = component_schemas(requests, given, forms, settings, able, describe)
    paths: dict[str, Any] = defaultdict(dict)
    for (dialect, route), contract in zip(table, contracts, strict=True):
        operation = _operation(dialect, route, contract, schemas, settings)
        paths[route.path].setdefault(route.method.lower(), operation)
    components: dict[str, Any] = {"schemas": schemas, "headers": dict(HEADERS)}
    if settings.keyed:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic", "description": "the key as user or as password"},
            "azure": {"type": "apiKey", "in": "header", "name": AZURE},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "gguf_imagegen", "version": __version__, "description": INTRODUCTION},
        "servers": [{"url": EXAMPLE_BASE}],
        "tags": [{"name": name} for name in dict.fromkeys(dialect.title for dialect, _ in table)],
        "paths": dict(paths),
        "components": components,
    }


def _operation(
    dialect: Dialect,
    route: web.RouteDef,
    contract: Contract,
    schemas: Mapping[str, Schema],
    settings: Settings,
) -> dict[str, Any]:
    summary, description = words_of(doc_of(route), route.path)
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "tags": [dialect.title],
        "summary": summary,
    }
    if description:
        made["description"] = description
    if parameters := [*_in_path(route.path), *map(_parameter, contract.params)]:
        made["parameters"] = parameters
    if contract.request is not None:
        made["requestBody"] = _body(contract, schemas)
    made["responses"] = _responses(dialect, route, contract, settings)
    if settings.keyed:
        made["security"] = [] if is_open(route.method, route.path) else [{name: []} for name in dialect.auth]
    return made


def words_of(doc: str, path: str) -> tuple[str, str]:
    """Summary and description of a handler's docstring, without the route that it begins with."""
    text = re.sub(r"^(?:GET|POST|DELETE) [^\s:,]*[^\s:,.](?: and /\S*[^\s:,.])?[:,.]\s*", "", doc)
    first, _, rest = text.partition("\n\n")
    first = " ".join(first.split()).rstrip(".") or _words_of_path(path)
    return first[:1].upper() + first[1:], rest.strip()


def _words_of_path(path: str) -> str:
    before, last = path.rsplit("/", 2)[-2:]
    return f"one of the {before}" if last.startswith("{") else last.replace("-", " ")


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _parameter(param: Param) -> dict[str, Any]:
    shape = {"schema": dict(param.schema), "description": param.description}
    return {"name": param.name, "in": param.where, **shape}


# -- requests -----------------------------------------------------------------------------------------


def _body(contract: Contract, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    assert contract.request is not None
    name = contract.request.__name__
    content: dict[str, Any] = {JSON: {"schema": _needing(contract.required, name, schemas)}}
    if contract.example:
        content[JSON]["example"] = dict(contract.example)
    if contract.form:
        content[FORM] = {"schema": _needing(contract.required, form_name(name), schemas)}
    return {"required": True, "content": content}


def _needing(required: Sequence[str], name: str, schemas: Mapping[str, Schema]) -> Schema:
    """The schema, with fields that only this route needs, by whichever of their names."""
    properties = schemas[name].get("properties", {})
    names = [names_of_property(field, properties) for field in required]
    single = [each[0] for each in names if len(each) == 1]
    several = [any_of(each) for each in names if len(each) > 1]
    made = ref(name)
    if single:
        made["required"] = single
    if several:
        made["allOf"] = several
    return made


# -- answers ------------------------------------------------------------------------------------------


def _responses(
    dialect: Dialect, route: web.RouteDef, contract: Contract, settings: Settings
) -> dict[str, Any]:
    made: dict[int, dict[str, Any]] = {}
    if contract.status:
        made[contract.status] = _answer(contract)
    if contract.dry_run is not None:
        _or_dry_run(made, ref(contract.dry_run.__name__))
    for status, model in contract.also.items():
        content = {JSON: {"schema": ref(model.__name__)}} if model is not None else {}
        made[status] = _response(WORDS[status], content)
    if route.method == "GET" and contract.status == 200 and JSON in contract.media:
        made[304] = _response(WORDS[304], {})  # `packing` tags them
    for status, kinds in _errors(dialect, route, contract, settings).items():
        codes = ", ".join(f"`{code}`" for code in dict.fromkeys(kind.code for kind in kinds))
        made.setdefault(status, _response(codes, {JSON: {"schema": ref(dialect.errors.model.__name__)}}))
        if status in (429, 503):
            made[status]["headers"] |= {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return {str(status): made[status] for status in sorted(made)}


def _or_dry_run(made: dict[int, dict[str, Any]], dry_run: Schema) -> None:
    found = made.setdefault(200, _response(WORDS[200], {}))["content"]
    usual = [found[JSON]["schema"]] if JSON in found else []
    found[JSON] = {"schema": {"anyOf": [*usual, dry_run]} if usual else dry_run}


def _answer(contract: Contract) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media in contract.media:
        if media == JSON and contract.answer is not None:
            content[media] = {"schema": ref(contract.answer.__name__)}
        elif media == EVENTS:
            content[media] = {
                "schema": {**ref(name_of(answers.ServerSentEvent)), "description": contract.events}
            }
        else:
            content[media] = {"schema": {"type": "string"}} if media.startswith("text/") else {}
    return _response(WORDS[contract.status], content)


def _response(description: str, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    return {"description": description, "headers": headers, "content": content}


def _errors(
    dialect: Dialect, route: web.RouteDef, contract: Contract, settings: Settings
) -> dict[int, list[type[ImagegenError]]]:
    """What can go wrong by status: the handler's, the guard's, and an internal error, which anything can."""
    kinds: list[type[ImagegenError]] = [*contract.errors, ImagegenError]
    if not settings.keyed or "basic" in dialect.auth:
        kinds.append(Forbidden)
    if settings.keyed and not is_open(route.method, route.path):
        kinds.append(Unauthorized)
    made: dict[int, list[type[ImagegenError]]] = defaultdict(list)
    for kind in kinds:
        made[dialect.errors.status(kind)].append(kind)
    return made
