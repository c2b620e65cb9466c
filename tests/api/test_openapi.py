"""GET /openapi.json: complete, valid, and made from the code."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import SecretStr

from gguf_imagegen.api.app import DIALECTS, OURS, ROUTES
from gguf_imagegen.api.openapi import document as openapi
from gguf_imagegen.api.openapi.contract import contract_of
from gguf_imagegen.api.openapi.schemas import names_of
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine

EVERY = (*OURS, *DIALECTS)
MODELS_ELSEWHERE = ("/v1/models/pull", "/v1/models/convert", "/v1/models")
"""Their examples name a model that is not on this machine."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(EVERY, Settings(max_steps=40, max_images=3), ABILITIES)


@pytest.fixture(scope="module")
def properties(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]["ImageRequest"]["properties"]
    return found


@pytest.mark.parametrize("keys", [(), (SecretStr("k"),)], ids=["open", "with a key"])
def test_it_is_openapi_3_1(keys: tuple[SecretStr, ...]) -> None:
    document = openapi.document(EVERY, Settings(api_key=keys), ABILITIES)
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_route_is_in_it_and_nothing_else(document: dict[str, Any]) -> None:
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method.lower(), route.path) for route in ROUTES}


def test_every_handler_has_a_contract() -> None:
    assert [route for route in ROUTES if contract_of(route) is None] == []


def test_every_operation_says_what_it_is(document: dict[str, Any]) -> None:
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["summary"][:1].isupper() or not operation["summary"][:1].isalpha()
        assert not re.match(r"(GET|POST|DELETE) /", operation["summary"])
        assert set(operation["tags"]) <= {tag["name"] for tag in document["tags"]}


@pytest.mark.parametrize("field", ImageRequest.model_fields)
def test_every_alias_is_a_property(properties: dict[str, Any], field: str) -> None:
    first, *others = names_of(ImageRequest, field)
    assert "x-alias-of" not in properties[first]
    assert [properties[name]["x-alias-of"] for name in others] == [field] * len(others)


def test_ranges_are_those_of_the_model_and_of_the_server(properties: dict[str, Any]) -> None:
    def number(name: str) -> dict[str, Any]:
        found: dict[str, Any] = properties[name]["anyOf"][0]
        return found

    assert (
        number("steps") == number("num_inference_steps") == {"type": "integer", "minimum": 1, "maximum": 40}
    )
    assert number("n")["maximum"] == 3
    assert number("strength") == {"type": "number", "minimum": 0, "maximum": 1}
    assert number("flow_shift")["exclusiveMinimum"] == 0
    assert number("sampler")["enum"] == list(ABILITIES.samplers)


def test_uploads_are_text_in_json_and_bytes_in_forms(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    as_json, as_form = (schemas[name]["properties"] for name in ("ImageRequest", "ImageForm"))
    assert as_json["mask"]["anyOf"][0]["contentEncoding"] == "base64"
    assert as_form["mask"] == {"type": "string", "format": "binary"}
    assert as_form["image"]["items"] == {"type": "string", "format": "binary"}
    assert as_form["hires"]["contentMediaType"] == "application/json"
    assert as_json.keys() == as_form.keys()


def test_statuses_come_from_the_error_classes(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert {"200", "202", "400", "404", "413", "415", "429", "499", "500", "503", "507"} <= answers.keys()
    assert "`queue_full`" in answers["429"]["description"]
    files = {"image/png", "image/jpeg", "image/webp", "application/zip"}
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream", *files}


def test_dialects_have_their_own_errors(document: dict[str, Any]) -> None:
    def error(path: str, status: str) -> str:
        content = document["paths"][path]["post"]["responses"][status]["content"]
        return str(content["application/json"]["schema"]["$ref"]).rsplit("/", 1)[-1]

    assert error("/v1/images/generations", "400") == "ErrorAnswer"
    assert error("/v1-openai/images/generations", "400") == "NumericErrorAnswer"
    assert error("/sdcpp/v1/img_gen", "400") == "NativeErrorAnswer"
    assert error("/sdcpp/v1/img_gen", "403") == "NativeErrorAnswer"
    assert "415" not in document["paths"]["/sdcpp/v1/img_gen"]["post"]["responses"]


def test_security_is_described_when_keys_are_set(document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    keyed = openapi.document(EVERY, Settings(api_key=(SecretStr("k"),)), ABILITIES)

    def security(path: str, method: str) -> Any:
        return keyed["paths"][path][method]["security"]

    assert security("/v1/images/generations", "post") == [{"bearer": []}, {"azure": []}]
    assert security("/sdapi/v1/txt2img", "post") == [{"bearer": []}, {"azure": []}, {"basic": []}]
    assert security("/v1/images/files/{name}", "get") == []
    assert security("/v1/images/files/{name}", "delete") == [{"bearer": []}, {"azure": []}]
    assert "401" in keyed["paths"]["/v1/jobs"]["get"]["responses"]


async def test_both_are_open_and_nothing_is_changed_without_a_key(running: RunningApp) -> None:
    async with running(engine=QuickEngine, api_key="secret") as app:
        for path in ("/openapi.json", "/docs", "/health"):
            async with app.session.get(app.url + path) as answer:
                assert answer.status == 200 or (path, answer.status) == ("/health", 503)  # it loads
        async with app.session.delete(f"{app.url}/v1/images/files/x.png") as answer:
            assert answer.status == 401


async def test_the_document_is_the_one_of_this_server(running: RunningApp) -> None:
    async with running(engine=QuickEngine, max_steps=7) as app:
        status, body = await app.get("/openapi.json")
    assert status == 200
    assert body["components"]["schemas"]["ImageRequest"]["properties"]["steps"]["anyOf"][0]["maximum"] == 7


async def test_examples_work(
    running: RunningApp, document: dict[str, Any], session: aiohttp.ClientSession
) -> None:
    """Those that need no picture of one's own are sent as they stand."""
    sent = 0
    async with running(engine=QuickEngine) as app:
        for path, methods in document["paths"].items():
            example = methods.get("post", {}).get("requestBody", {}).get("content", {})
            body = example.get("application/json", {}).get("example")
            if body is None or "..." in str(body) or path in MODELS_ELSEWHERE or "{" in path:
                continue
            async with session.post(app.url + path, json=body) as answer:
                assert answer.status in (200, 202), (path, await answer.text())
            sent += 1
    assert sent >= 7
