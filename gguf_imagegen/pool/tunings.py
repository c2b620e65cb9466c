"""The tunings of a models folder: one small file, `.tuning.json`, with what was found for each model.

A tuning holds for one machine, one build of the engine and files of certain sizes; elsewhere it is ignored.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gguf_imagegen.pool.identity import Machine, this_machine
from gguf_imagegen.pool.options import Options
from gguf_imagegen.vocabulary.engine import Kernels, Role

log = logging.getLogger(__name__)

FILE: Final = ".tuning.json"


class Tuning(BaseModel):
    """The fastest options of a model here; seconds are those of one picture of `size` by its own defaults.

    `files` are bytes by role, `measured` is ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: Options
    machine: Machine
    files: Mapping[str, int]
    size: str
    default_seconds: float
    tuned_seconds: float
    measured: str


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    models: Mapping[str, Tuning] = {}


class Tunings:
    """Those of one models folder, by the model's name; the machine is looked at once, if it must be."""

    def __init__(
        self,
        models_dir: Path,
        kernels: Kernels = "auto",
        look: Callable[[Kernels], Machine | None] = this_machine,
    ) -> None:
        self.path = models_dir / FILE
        self._kernels: Kernels = kernels
        self._look = look
        self._machine: Machine | None = None

    @property
    def machine(self) -> Machine | None:
        """This machine; None if its engine does not load."""
        self._machine = self._machine or self._look(self._kernels)
        return self._machine

    def find(self, name: str, files: Mapping[Role, Path]) -> Tuning | None:
        """The tuning of a model, if it is of this machine and these files; logs why not, and never fails."""
        tuning = self._read().get(name)
        if tuning is None:
            return None
        if tuning.files != sizes_of(files):
            log.info("the tuning of %s is of other files, and is ignored; tune it again", name)
            return None
        here = self.machine
        differences = tuning.machine.differences(here) if here else ["engine"]
        if differences:
            log.info(
                "the tuning of %s is of another machine or build (%s), and is ignored; tune it again",
                name, ", ".join(differences),
            )  # fmt: skip
            return None
        return tuning

    def keep(self, name: str, tuning: Tuning) -> None:
        """Write it in place of what was known of this model; OSError if that cannot be done."""
        content = _Content(models={**self._read(), name: tuning})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{FILE}.{os.getpid()}.new")
        try:
            text = json.dumps(content.model_dump(mode="json", exclude_none=True), indent=1)
            temporary.write_text(f"{text}\n", encoding="utf-8")
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _read(self) -> Mapping[str, Tuning]:
        try:
            return _Content.model_validate_json(self.path.read_bytes()).models
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as exc:
            log.warning(
                "%s cannot be read (%s) and is ignored; tune the models again", FILE, type(exc).__name__
            )
            return {}


def sizes_of(files: Mapping[Role, Path]) -> dict[str, int]:
    """Bytes by role; without files that are not there."""
    return {str(role): path.stat().st_size for role, path in files.items() if path.is_file()}
