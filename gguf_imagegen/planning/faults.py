"""What pydantic found wrong with a request, in one sentence and in FastAPI's list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gguf_imagegen.planning.said import said
from gguf_imagegen.vocabulary.errors import Fault, InvalidRequest

Model = TypeVar("Model", bound=BaseModel)


def validated(kind: type[Model], data: Mapping[str, Any], counts: Collection[str] = ()) -> Model:
    """What the data says, in its types; of `counts` 0 says nothing. Raises InvalidRequest."""
    try:
        return kind.model_validate(said(data, counts))
    except ValidationError as exc:
        message, param, faults = explained(exc)
        raise InvalidRequest(message, param=param, faults=faults) from exc


def explained(exc: ValidationError) -> tuple[str, str | None, list[Fault]]:
    """A sentence on the first fault, the name of its field, and all fields missing or of a wrong type."""
    every = exc.errors(include_url=False, include_context=False, include_input=False)
    first = every[0]
    sentence = f"{'.'.join(map(str, first['loc']))}: {_words(first['msg'])}"
    param = str(first["loc"][0]) if first["loc"] else None
    faults: list[Fault] = [
        {"loc": ["body", *each["loc"]], "msg": _words(each["msg"]), "type": each["type"]}
        for each in every
        if _is_of_type(each["type"])
    ]
    return sentence, param, faults if _is_of_type(first["type"]) else []


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")


def _is_of_type(kind: str) -> bool:
    """Whether pydantic's word for a fault says that a value is missing or no such thing at all."""
    return kind in ("missing", "int_from_float") or kind.endswith(("_type", "_parsing"))
