"""JSON answers are built by the models that document them."""

from __future__ import annotations

import ast
import base64
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

import gguf_imagegen.api
from gguf_imagegen.api import answers
from gguf_imagegen.api.app import ROUTES
from gguf_imagegen.api.error_answers import ErrorAnswer
from gguf_imagegen.api.job_answers import ImageItem
from gguf_imagegen.api.openapi.contract import JSON, contract_of
from gguf_imagegen.api.reply import Answer, encoded

API = Path(gguf_imagegen.api.__file__).parent


def test_every_json_answer_is_made_by_a_model() -> None:
    """Nobody but `reply` makes JSON answers; the description of the API is JSON already."""
    for path in API.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert "json_response" not in names, path
        if JSON in words:
            assert path.relative_to(API).as_posix() in {
                "reply.py", "openapi/contract.py", "openapi/routes.py", "streams/send.py",
                "openapi/schemas.py", "packing.py",
            }, path  # fmt: skip


def test_objects_with_known_keys_take_no_others() -> None:
    """Of every route whose answer is an object with keys of ours."""
    free = {"AnyObject", "ObjectList", "Nothing", "ModelStates", "OcrAnswer", "JsonRpc"}
    for route in ROUTES:
        contract = contract_of(route)
        assert contract is not None
        for model in (contract.answer, *contract.also.values()):
            assert model is None or model.__name__ in free or issubclass(model, Answer), route


def test_what_no_model_has_is_not_sent() -> None:
    """Neither a key too many nor one too few; what may be left out is, unless it is given."""
    with pytest.raises(ValidationError):
        encoded(answers.Alive, {"status": "alive", "secret": 1})
    with pytest.raises(ValidationError):
        encoded(answers.Alive, {})
    error = {"message": "m", "type": "t", "param": None, "code": "c"}
    assert json.loads(encoded(ErrorAnswer, {"error": error, "detail": "d"}))["error"] == error


def test_pictures_are_not_copied_into_a_model() -> None:
    """The text of a picture in a model is the one that was given."""
    text = base64.b64encode(os.urandom(3_000_000)).decode()
    item = {
        "b64_json": text, "revised_prompt": None, "index": 0, "seed": 1, "variation_seed": None,
        "sampler": "euler", "schedule": "default", "steps": 1, "cfg_scale": 1.0, "width": 1, "height": 1,
        "finish_reason": "stop",
    }  # fmt: skip
    assert ImageItem.model_validate(item).b64_json is text
    assert json.loads(encoded(ImageItem, item)) == item
