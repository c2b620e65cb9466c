"""`gguf-imagegen tune`: measure what is fastest for a model on this machine, and keep it for `serve`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.default_model import choose_models, names_file
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.verdict import needs_tiling
from gguf_imagegen.commands.tuning.candidates import can_have_huge_pages, factors
from gguf_imagegen.commands.tuning.measure import Effort, Speed
from gguf_imagegen.commands.tuning.show import shown, table
from gguf_imagegen.commands.tuning.tuner import KEPT, LEAST_GAIN, Outcome, Trial, Tuner, Work
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.kernels import kernels_here
from gguf_imagegen.machine.memory import available
from gguf_imagegen.planning.specimen import specimen
from gguf_imagegen.pool.identity import Machine
from gguf_imagegen.pool.tunings import Tuning, Tunings, sizes_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import ModelLoadFailed

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""
BUSY: Final = 0.5
"""Load a core above which other programs spoil the figures."""
UNSTEADY: Final = 0.15
"""Part by which the defaults' time may change from the first measurement to the last."""


def tune(
    settings: Settings,
    model: str,
    effort: Effort,
    size: str | None = None,
    json_file: Path | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> int:
    """Measure, keep the winner, and tell; the exit code. What was known before stays until the end."""
    console = Console(stderr=True)
    catalog, entry = chosen(settings.model_copy(update={"model": model}))
    tunings = Tunings(settings.models_dir, settings.kernels)
    machine = _machine(tunings)
    work = work_for(catalog, entry, settings, effort, size)
    tried = factors(
        entry.family, settings, usable_cores(),
        huge_pages=can_have_huge_pages(), kernels=machine.kernels, int8="int8" in kernels_here("int8"),
        defaults=work.model.settled(machine.backend, machine.kernels),
    )  # fmt: skip
    _warn_if_busy(console)
    runs = 1 + sum(map(len, tried)) + work.tiny + bool(tried)  # the last: the defaults again
    try:
        with shown(console, runs) as watcher:
            engines = make_engine or (lambda: EngineProcess(stall_timeout=settings.load_timeout))
            outcome = asyncio.run(Tuner(work, engines, watcher).tune(tried))
    except KeyboardInterrupt:
        console.print("stopped; what was tuned before stays as it was", highlight=False)
        return INTERRUPTED
    tuning = Tuning(
        options=outcome.options,
        machine=machine,
        files=sizes_of(work.model.files),
        size=f"{work.picture.width}x{work.picture.height}",
        default_seconds=round(outcome.default_seconds, 4),
        tuned_seconds=round(outcome.tuned_seconds, 4),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    tunings.keep(entry.name, tuning)
    if json_file is not None:
        json_file.write_text(
            json.dumps(as_json(entry, work, outcome, tuning), indent=1) + "\n", encoding="utf-8"
        )
    tell(Console(), entry.name, work.steps, outcome)
    return 0


def chosen(settings: Settings) -> tuple[Catalog, Entry]:
    """The model that is tuned, on this machine and complete."""
    catalog, default = choose_models(settings)
    is_file = names_file(settings.model)
    return catalog, catalog.get(default if is_file else settings.model)


def work_for(catalog: Catalog, entry: Entry, settings: Settings, effort: Effort, size: str | None) -> Work:
    """A picture of the model's own size and guidance; InsufficientMemory as `serve` would say it."""
    found = specimen(catalog, entry, settings, effort.steps, size)
    model, spec = found.model, found.picture
    settings = entry.engine.over(settings)

    def tiled(backend: str, kernels: str) -> bool:
        direct = bool(model.settled(backend, kernels).vae_conv_direct)
        return settings.memory_check and needs_tiling(
            entry, found.headers, spec.width, spec.height, available(), backend, direct
        )

    return Work(
        model=model,
        picture=spec,
        steps=entry.defaults.steps,
        effort=effort,
        tiled=tiled,
        tiny=entry.decoder == "full" and "tiny" in entry.decoders,
    )


def as_json(entry: Entry, work: Work, outcome: Outcome, tuning: Tuning) -> dict[str, Any]:
    """Everything that was found; times are seconds."""
    return {
        "model": entry.name,
        **tuning.model_dump(mode="json", exclude_none=True),
        "picture_steps": work.steps,
        "backend": outcome.backend,
        "kernels": outcome.kernels,
        "tiled_decode": outcome.tiled_decode,
        "drift": outcome.drift,
        "candidates": [_trial(trial, work.steps) for trial in outcome.trials],
    }


def _trial(trial: Trial, steps: int) -> dict[str, Any]:
    speed = trial.speed
    return {
        "name": trial.name,
        "options": trial.options.given,
        "step": speed and speed.step,
        "decode": speed and speed.decode,
        "picture": speed and speed.picture(steps),
        "steps_measured": speed and speed.steps_measured,
        "ratio": trial.ratio,
        "psnr": trial.psnr,
        "words": trial.words,
    }


def _machine(tunings: Tunings) -> Machine:
    """This machine, and a folder that can be written to: better asked before the minutes of measuring."""
    machine = tunings.machine
    if machine is None:
        raise ModelLoadFailed("The engine's library does not load; see `gguf-imagegen doctor`.")
    tunings.path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(tunings.path.parent, os.W_OK):
        raise PermissionError(f"the models folder cannot be written to: {tunings.path.parent}")
    return machine


def _warn_if_busy(console: Console) -> None:
    load = psutil.getloadavg()[0]
    if load > BUSY * usable_cores():
        console.print(
            f"other programs use this machine (load {load:.1f}): the figures are less certain,"
            " better tune again when it is idle",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip


def tell(console: Console, name: str, steps: int, outcome: Outcome) -> None:
    """What was tried, how to read it, and what `serve` makes of it."""
    console.print(table(outcome, steps))
    console.print(
        f"each row is tried on top of what was kept on above it; less than {LEAST_GAIN * 100:.0f} %"
        " faster does not count",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.tiled_decode is not None:
        console.print(
            f"decoding in tiles takes {outcome.tiled_decode:.3f} s; done where memory is short only",
            highlight=False,
        )
    if outcome.tiny is not None and outcome.tiny.speed is not None:
        console.print(_tiny(outcome.tiny, outcome.tiny.speed), highlight=False, soft_wrap=True)
    if outcome.drift is not None and abs(outcome.drift) > UNSTEADY:
        console.print(
            f"the machine was not steady: at the end the defaults took {1 + outcome.drift:.2f} times as long"
            " as at first; tune again while nothing else computes",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(f"{name}: {_result(outcome)}", highlight=False, soft_wrap=True)


def _tiny(trial: Trial, speed: Speed) -> str:
    return (
        f"the tiny decoder takes {speed.decode:.3f} s, a picture {trial.ratio:.2f} of the defaults' time;"
        f" it draws another picture ({trial.psnr:.1f} dB), so that it is for you to ask for:"
        ' "decoder": "tiny" in a request, or `decoder: tiny` with the model in a catalog of your own'
    )


def _result(outcome: Outcome) -> str:
    if outcome.options.given:
        gain = f"{outcome.default_seconds:.2f} s become {outcome.tuned_seconds:.2f} s a picture"
        return f"{outcome.options.words}; {gain}; kept for serve"
    if any(trial.words == KEPT for trial in outcome.trials):
        return "no option was faster in the second measurement; serve uses the defaults"
    return "nothing is faster than the defaults; serve uses the defaults"
