"""Several images of one prompt, where encoding the prompt takes long."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

from bench_figures import Run
from bench_server import MODEL, PICTURE, exhaust, now, seconds

from gguf_imagegen.catalog.choose import choose_models
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.engine.protocol import GenerateSpec, ModelSpec, Role
from gguf_imagegen.events import ImageMade
from gguf_imagegen.jobs.plan import plan
from gguf_imagegen.schema.request import parse_request
from gguf_imagegen.testmodel import write_test_model

IMAGES = 4
ROUNDS = 3
"""However many are wanted: each takes a minute."""


async def text(run: Run) -> None:
    """A text encoder of Qwen3 1.7B's shapes before a small transformer."""
    catalog, default = choose_models(run.settings)
    wanted, warnings = parse_request(PICTURE)
    one = plan(wanted, catalog.get(default), run.settings, "generation", warnings).spec
    several = replace(one, n=IMAGES)
    encoding, together, apart = [], [], []
    engine = EngineProcess()
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        run.say("writing a text encoder of 1.8 GB")
        files = cast("dict[Role, Path]", write_test_model(Path(folder), hidden=256, full_text=True))
        try:
            await exhaust(engine.load(ModelSpec(MODEL, files, threads=run.settings.threads)))
            await exhaust(engine.generate(several))
            for _ in run.rounds(ROUNDS):
                encoding.append(await conditioning(engine, one))
                together.append(await seconds(exhaust(engine.generate(several))))
                began = now()
                for _ in range(IMAGES):
                    await exhaust(engine.generate(one))
                apart.append(now() - began)
        finally:
            await engine.close()
    run.tell("encoding the prompt", "s", encoding)
    run.tell_ratios(f"a job of {IMAGES} images ÷ {IMAGES} jobs", together, apart)


async def conditioning(engine: EngineProcess, spec: GenerateSpec) -> float:
    """Seconds before the first step."""
    events = [event async for event in engine.generate(spec)]
    return sum(event.timings.conditioning_ms / 1000 for event in events if isinstance(event, ImageMade))
