"""The OpenAPI 3.1 document of this server, from the route table and the contracts of the handlers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen import __version__
from gguf_imagegen.api import answers
from gguf_imagegen.api.dialects.gpustack import PATHS as GPUSTACK
from gguf_imagegen.api.middleware import A1111, AZURE, is_open
from gguf_imagegen.api.openapi.contract import (
    EVENTS,
    FORM,
    JSON,
    Contract,
    Param,
    doc_of,
    error_shape,
    tag_of,
)
from gguf_imagegen.api.openapi.contracts import CONTRACTS, contract_of
from gguf_imagegen.api.openapi.schemas import Schema, any_of, component_schemas, names_of_property, ref
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.errors import ContentTypeUnsupported, Forbidden, ImagegenError, Unauthorized

INTRODUCTION = (
    "Pictures from GGUF diffusion models through stable-diffusion.cpp, in the words of several APIs. Unknown"
    " fields are ignored and named in `warnings`; a null is a field not said. Numbers may come as text."
)
BY_GUARD = (Unauthorized, Forbidden)
NATIVE = "/sdcpp/"
HEADERS: Mapping[str, Schema] = {
    "X-Request-ID": {"description": "the request's own, or one made for it", "schema": {"type": "string"}},
    "X-Job-Id": {"description": "the job that was made", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds", "schema": {"type": "integer"}},
}
WORDS = {200: "done", 202: "accepted", 304: "not modified", 503: "not ready"}


def document(routes: Iterable[web.AbstractRouteDef], settings: Settings, able: Abilities) -> dict[str, Any]:
    """The whole document. Takes a while: call it in a thread."""
    table = [route for route in routes if isinstance(route, web.RouteDef)]
    contracts = [contract_of(route.handler) or Contract() for route in table]
    requests = {each.request for each in contracts if each.request is not None}
    given = {each.answer for each in contracts if each.answer is not None}
    given |= {model for each in contracts for model in each.also.values() if model is not None}
    given |= {error_shape(route.path) for route in table} | {answers.ErrorAnswer, answers.ServerSentEvent}
    by_name = sorted(requests, key=_name), sorted(given, key=_name)
    schemas = component_schemas(*by_name, settings, able)
    paths: dict[str, Any] = defaultdict(dict)
    for route, contract in zip(table, contracts, strict=True):
        paths[route.path][route.method.lower()] = _operation(route, contract, schemas, settings)
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
        "tags": [{"name": name} for name in dict.fromkeys(tag_of(route.path) for route in table)],
        "paths": dict(paths),
        "components": components,
    }


def undescribed(routes: Iterable[web.AbstractRouteDef]) -> list[str]:
    """Routes whose handler has no contract."""
    table = [route for route in routes if isinstance(route, web.RouteDef)]
    return [f"{route.method} {route.path}" for route in table if contract_of(route.handler) is None]


def unused(routes: Iterable[web.AbstractRouteDef]) -> list[str]:
    """Handlers with a contract and without a route."""
    used = {id(contract_of(route.handler)) for route in routes if isinstance(route, web.RouteDef)}
    return [handler.__name__ for handler, contract in CONTRACTS.items() if id(contract) not in used]


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _operation(
    route: web.RouteDef, contract: Contract, schemas: Mapping[str, Schema], settings: Settings
) -> dict[str, Any]:
    summary, description = words_of(doc_of(route), route.path)
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "tags": [tag_of(route.path)],
        "summary": summary,
    }
    if description:
        made["description"] = description
    if parameters := [*_in_path(route.path), *map(_parameter, contract.params)]:
        made["parameters"] = parameters
    if contract.request is not None:
        made["requestBody"] = _body(contract, schemas)
    made["responses"] = _responses(route, contract, settings)
    if settings.keyed:
        schemes = ["bearer", "azure"] + ["basic"] * route.path.startswith(A1111)
        made["security"] = [] if is_open(route.method, route.path) else [{name: []} for name in schemes]
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
    if contract.form and contract.request is ImageRequest:
        content[FORM] = {"schema": _needing(contract.required, "ImageForm", schemas)}
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


def _responses(route: web.RouteDef, contract: Contract, settings: Settings) -> dict[str, Any]:
    made: dict[int, dict[str, Any]] = {}
    if contract.status:
        made[contract.status] = _answer(contract)
    for status, model in contract.also.items():
        content = {JSON: {"schema": ref(model.__name__)}} if model is not None else {}
        made[status] = _response(WORDS[status], content)
    for status, kinds in _errors(route, contract, settings).items():
        guarded = set(kinds) & set(BY_GUARD) and not route.path.startswith(GPUSTACK)
        shape = answers.ErrorAnswer if guarded else error_shape(route.path)
        codes = ", ".join(f"`{code}`" for code in dict.fromkeys(kind.code for kind in kinds))
        made.setdefault(status, _response(codes, {JSON: {"schema": ref(shape.__name__)}}))
        if status in (429, 503):
            made[status]["headers"] |= {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return {str(status): made[status] for status in sorted(made)}


def _answer(contract: Contract) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media in contract.media:
        if media == JSON and contract.answer is not None:
            content[media] = {"schema": ref(contract.answer.__name__)}
        elif media == EVENTS:
            content[media] = {
                "schema": {**ref(_name(answers.ServerSentEvent)), "description": contract.events}
            }
        else:
            content[media] = {"schema": {"type": "string"}} if media.startswith("text/") else {}
    return _response(WORDS[contract.status], content)


def _response(description: str, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    return {"description": description, "headers": headers, "content": content}


def _errors(
    route: web.RouteDef, contract: Contract, settings: Settings
) -> dict[int, list[type[ImagegenError]]]:
    """What can go wrong by status: the handler's, the guard's, and an internal error, which anything can."""
    kinds: list[type[ImagegenError]] = [*contract.errors, ImagegenError]
    if not settings.keyed or route.path.startswith(A1111):
        kinds.append(Forbidden)
    if settings.keyed and not is_open(route.method, route.path):
        kinds.append(Unauthorized)
    made: dict[int, list[type[ImagegenError]]] = defaultdict(list)
    for kind in kinds:
        native = kind is ContentTypeUnsupported and route.path.startswith(NATIVE)  # sd.cpp looks at no type
        made[400 if native else kind.status].append(kind)
    return made
