"""The request for a set: what all its pictures share, and what is combined to make each of them."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.planning.expansion import COUNTLESS, Choice, Sequel, Wildcards, expanded
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.planning.fields import Finite
from gguf_imagegen.planning.request import MAX_SEED, ImageRequest, Text, parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.errors import InvalidRequest

MOST_VALUES = 1000
RANDOM = -1
"""A seed that is drawn."""


class Matrix(BaseModel):
    """Values to combine; those that are not here are the same for the whole set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[tuple[str, ...], Field(max_length=MOST_VALUES)] = ()
    cfg_scale: Annotated[tuple[Finite, ...], Field(max_length=MOST_VALUES)] = ()
    sampler: Annotated[tuple[str, ...], Field(max_length=MOST_VALUES)] = ()
    steps: Annotated[tuple[int, ...], Field(max_length=MOST_VALUES)] = ()
    seed: Annotated[tuple[int, ...], Field(max_length=MOST_VALUES)] = ()
    variation_strength: Annotated[tuple[Finite, ...], Field(max_length=MOST_VALUES)] = ()


class SetRequest(BaseModel):
    """The fields of a set alone; beside them are those of an `ImageRequest`, except `prompt`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_VALUES)]
    expand: bool = False
    matrix: Matrix = Matrix()
    n: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Combinations:
    """`shared` is the request that `own` fields complete, one mapping for each picture."""

    shared: ImageRequest
    own: Sequence[Mapping[str, Any]]
    warnings: list[str]

    @property
    def requests(self) -> Iterator[ImageRequest]:
        return (self.shared.model_copy(update=dict(own)) for own in self.own)


def combinations(data: Mapping[str, Any], able: Abilities, settings: Settings) -> Combinations:
    """Every combination, or `n` drawn ones. Raises InvalidRequest kinds. Reads files: call it in a thread."""
    if "prompt" in data:
        raise InvalidRequest("prompt: a set has a list of 'prompts'", param="prompt")
    if data.get("webhook"):
        raise InvalidRequest("webhook: a set has none; follow it at its 'events' address", param="webhook")
    wanted = validated(SetRequest, data)
    rest = {key: value for key, value in data.items() if key not in SetRequest.model_fields}
    shared, warnings = parse_request(rest, able)
    if shared.enhance:
        raise InvalidRequest("enhance: a set draws its prompts as they are", param="enhance")
    axes = _axes(wanted, shared, able, warnings)
    if any(axes["variation_strength"]) and shared.variation_seed is None:
        shared = shared.model_copy(update={"variation_seed": secrets.randbelow(MAX_SEED)})
    prompts = Choice(_prompts(wanted, settings))
    counts = {"model": len(axes["model"]), "prompt": prompts.count}
    counts |= {name: len(values) for name, values in axes.items() if name not in counts}
    total = min(COUNTLESS, math.prod(counts.values()))
    own = [_own(number, counts, axes, prompts) for number in _chosen(total, wanted, axes, settings)]
    return Combinations(shared, own, warnings)


def _axes(
    wanted: SetRequest, shared: ImageRequest, able: Abilities, warnings: list[str]
) -> dict[str, list[Any]]:
    """The values of each field, checked as in any request; one value where there is nothing to combine."""
    axes: dict[str, list[Any]] = {}
    for name in Matrix.model_fields:
        axes[name] = []
        for value in getattr(wanted.matrix, name):
            request, notes = parse_request({name: value}, able)
            axes[name].append(getattr(request, name))
            warnings += [note for note in notes if note not in warnings]
        axes[name] = axes[name] or [getattr(shared, name)]
    axes["seed"] = [secrets.randbelow(MAX_SEED) if seed is None else seed for seed in axes["seed"]]
    return axes


def _prompts(wanted: SetRequest, settings: Settings) -> tuple[Sequel, ...]:
    if not wanted.expand:
        return tuple(Sequel((prompt,)) for prompt in wanted.prompts)
    wildcards = Wildcards(settings.wildcards_dir)
    return tuple(expanded(prompt, wildcards.lines) for prompt in wanted.prompts)


def _chosen(
    total: int, wanted: SetRequest, axes: Mapping[str, Sequence[Any]], settings: Settings
) -> Sequence[int]:
    """The numbers of the combinations to make."""
    count = total if wanted.n is None else min(wanted.n, total)
    if count > settings.max_set:
        many = f"more than {COUNTLESS:,}" if total == COUNTLESS else f"{count:,}"
        raise InvalidRequest(
            f"prompts: {many} pictures are too many; this server makes {settings.max_set} in one set: say"
            " less, or 'n' for some of them",
            param="n" if wanted.n is not None else "prompts",
        )
    if count == total:
        return range(total)
    return sorted(random.Random(axes["seed"][0]).sample(range(total), count))


def _own(
    number: int, counts: Mapping[str, int], axes: Mapping[str, Sequence[Any]], prompts: Choice
) -> dict[str, Any]:
    """Combination `number`, the last field changing fastest."""
    own: dict[str, Any] = {}
    for name, count in reversed(list(counts.items())):
        number, place = divmod(number, count)
        own[name] = prompts.text(place) if name == "prompt" else axes[name][place]
    return own
