"""LoRAs that a request names as its model, as OpenVINO Model Server has it, alone or mixed.

https://github.com/openvinotoolkit/model_server/blob/main/docs/image_generation/reference.md#lora-adapters
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.request import ImageRequest, LoraRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest

_PART = re.compile(r"@([^:@]+)(?::(-?\d{1,2}(?:\.\d{1,6})?))?")


@dataclass(frozen=True)
class Part:
    """A LoRA of an adapter: what requests call it, its file's name, and its weight by default."""

    alias: str
    file: str
    weight: float = 1.0


Adapters = Mapping[str, tuple[Part, ...]]


def adapters_of(words: tuple[str, ...]) -> Adapters:
    """What `--lora-names` says: `NAME=FILE`, or a mixture `NAME=@A:0.5+@B:0.4` of names or files.

    Raises InvalidRequest for what is neither.
    """
    found: dict[str, tuple[Part, ...]] = {}
    for word in words:
        name, _, said = word.partition("=")
        if not name or not said:
            raise InvalidRequest(f"lora_names: {word[:80]!r} is not NAME=FILE or NAME=@A:0.5+@B:0.4")
        found[name] = _mixture(word, said, found) if said.startswith("@") else (Part(name, said),)
    return found


def _mixture(word: str, said: str, known: Adapters) -> tuple[Part, ...]:
    parts = []
    for piece in said.split("+"):
        match = _PART.fullmatch(piece.strip())
        if match is None:
            raise InvalidRequest(f"lora_names: {word[:80]!r}: {piece[:40]!r} is not @NAME:WEIGHT")
        alone = known.get(match[1], (Part(match[1], match[1]),))
        parts += [Part(match[1], part.file, float(match[2] or part.weight)) for part in alone]
    return tuple(parts)


def with_adapter(request: ImageRequest, settings: Settings) -> ImageRequest | None:
    """The request to the default model with the LoRAs of its `model`, None if that names none."""
    named = adapters_of(settings.lora_names)
    parts = named.get(request.model or "")
    if parts is None and request.model in names_in(settings.lora_dir, "lora"):
        parts = (Part(request.model or "", request.model or ""),)
    if parts is None:
        return None
    weights = request.lora_alphas
    strange = sorted(weights.keys() - {part.alias for part in parts})
    if strange:
        raise InvalidRequest(
            f"lora_alphas: {strange[0][:60]!r} is no part of {request.model!r}; it has"
            f" {', '.join(part.alias for part in parts)}",
            param="lora_alphas",
        )
    loras = [LoraRequest(name=part.file, scale=weights.get(part.alias, part.weight)) for part in parts]
    return request.model_copy(update={"lora": (*loras, *request.lora)})
