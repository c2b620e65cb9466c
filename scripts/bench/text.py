"""Several images of one prompt, where encoding the prompt takes long."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

from msgspec.structs import replace

from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec, Role
from gguf_imagegen.vocabulary.events import Made
from scripts.bench.figures import Run
from scripts.bench.server import MODEL, PICTURE, exhaust, now, seconds

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
            await exhaust(engine.load(LoadSpec(MODEL, files, threads=run.settings.threads)))
            await exhaust(engine.run(several))
            for _ in run.rounds(ROUNDS):
                encoding.append(await conditioning(engine, one))
                together.append(await seconds(exhaust(engine.run(several))))
                began = now()
                for _ in range(IMAGES):
                    await exhaust(engine.run(one))
                apart.append(now() - began)
        finally:
            await engine.close()
    run.tell("encoding the prompt", "s", encoding)
    run.tell_ratios(f"a job of {IMAGES} images ÷ {IMAGES} jobs", together, apart)


async def conditioning(engine: EngineProcess, spec: Generate) -> float:
    """Seconds before the first step."""
    events = [event async for event in engine.run(spec)]
    return sum(event.timings.conditioning_ms / 1000 for event in events if isinstance(event, Made))
