"""What an engine makes, as files: enlarged, finished and encoded on the machine where the engine is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.vocabulary.engine import Generate, LiveEngine, Upscale
from gguf_imagegen.vocabulary.events import EngineEvent, Made, PictureFile, Preview, PreviewFile


async def drawn(
    engine: LiveEngine, spec: Generate, finish: Finish, threads: int
) -> AsyncIterator[EngineEvent]:
    """What the engine tells while it draws; all pictures are drawn before the first one is enlarged."""
    waiting: list[Made] = []
    async for event in engine.run(spec):
        match event:
            case Preview(index=index, step=step, steps=steps, picture=picture):
                yield PreviewFile(index, step, steps, await asyncio.to_thread(finish.preview, picture))
            case Made(index=index, artifact=artifact, timings=timings):
                if finish.enlarges:
                    waiting.append(Made(index, await asyncio.to_thread(finish.crop, artifact), timings))
                else:
                    yield PictureFile(index, await asyncio.to_thread(finish.file, artifact, index), timings)
            case _:
                yield event
    for made in waiting:
        async for event in enlarged(engine, made, finish, threads):
            yield event


async def enlarged(
    engine: LiveEngine, made: Made, finish: Finish, threads: int
) -> AsyncIterator[EngineEvent]:
    """A picture of the size drawn: to the size asked for where the model drew less, then as is wished."""
    picture = made.artifact
    for upscaler, after in ((finish.enlarger, finish.restore), (finish.upscaler, finish.resize)):
        if upscaler is not None:
            task = Upscale(upscaler.path, picture, made.index, threads, upscaler.tile)
            async for event in engine.run(task):
                if isinstance(event, Made):
                    picture = event.artifact
                else:
                    yield event
        picture = await asyncio.to_thread(after, picture)
    data = await asyncio.to_thread(finish.encode, picture, made.index)
    yield PictureFile(made.index, data, made.timings)
