"""One picture from the command line: the same plan, queue and engine as the server, without HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gguf_imagegen.api.dialects.a1111.names import take_loras
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.jobs.job import ImageReady, Job
from gguf_imagegen.planning.prompt import require_prompt
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.service import Service
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary import events


async def generate(settings: Settings, fields: dict[str, object], output: Path, bar: Progress) -> list[Path]:
    """Make the images that `fields` ask for and write them; paths of the files written.

    `<lora:NAME:WEIGHT>` in the prompt applies a LoRA of the folder. Warnings go to the bar's console.
    """
    catalog, default = choose_models(settings)
    asked = str(fields["prompt"])
    prompt, loras = take_loras(asked, [name.strip() for name in re.findall(r"<lora:([^:<>]+)", asked)])
    request, warnings = parse_request({**fields, "prompt": prompt, "lora": loras})
    require_prompt(request.prompt)
    service = Service(settings, catalog, default, SdCpp(settings))
    async with service.running():
        job = await service.submit(request, "edit" if request.image else "generation", warnings)
        await _follow(job, bar)
        for warning in job.warnings:
            bar.console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
        if job.error is not None:
            raise job.error.bare()
        return _write(job, service.results.get, output)


async def _follow(job: Job, bar: Progress) -> None:
    task = bar.add_task("loading", total=None)
    seen = 0
    while await job.more_than(seen):
        event = job.events[seen]
        seen += 1
        match event:
            case events.Loading(done=done, total=total):
                bar.update(task, description="loading", completed=done, total=total or None)
            case events.PhaseChanged(index=index, phase=phase):
                number = f" {index + 1}/{job.plan.n}" if job.plan.n > 1 else ""
                bar.update(task, description=phase + number)
            case events.Progress(phase="sampling" | "hires", step=step, steps=steps):
                bar.update(task, completed=step, total=steps)
            case ImageReady(index=index, seed=seed):
                variation = job.plan.variation(index)
                more = f", variation seed {variation.seed}" if variation else ""
                bar.console.print(f"seed {seed}{more}", highlight=False)


def _write(job: Job, read: Callable[[str], bytes], output: Path) -> list[Path]:
    """`out.png`, or `out-0.png`, `out-1.png`, … when there are several."""
    paths = []
    for image in job.images:
        path = output if len(job.images) == 1 else output.with_stem(f"{output.stem}-{image.index}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read(image.name))
        paths.append(path)
    return paths


def progress_bar() -> Progress:
    """On stderr: stdout has the names of the files and nothing else."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
