"""Fields of the dialects spoken here that this engine cannot honour, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_PROMPT = "the engine gives one prompt to all text encoders of a model"
WITHOUT_EFFECT = {
    "prompt_2": ONE_PROMPT,
    "prompt_3": ONE_PROMPT,
    "negative_prompt_2": ONE_PROMPT,
    "negative_prompt_3": ONE_PROMPT,
    "max_sequence_length": "the engine always encodes the whole prompt",
    "style": "say it in the prompt",
    "input_fidelity": "use 'strength', where the model has it",
    "user": "",
    "moderation": "",
}
"""Those without a reason ask for nothing that a picture could show."""


def warnings_of(names: list[str], data: Mapping[str, Any]) -> list[str]:
    """A warning for each reason; a further prompt that says the same as the first one loses nothing."""
    by_reason: dict[str, list[str]] = {}
    for name in names:
        if data[name] not in ("", "auto") and data[name] != data.get(name.rpartition("_")[0]):
            by_reason.setdefault(WITHOUT_EFFECT[name], []).append(name)
    return [f"{', '.join(same)}: no effect; {reason}" for reason, same in by_reason.items() if reason]
