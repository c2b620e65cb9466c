"""llama-box's streams on OpenAI's image routes, which have its fields too: a frame for each step.

https://github.com/gpustack/llama-box; GPUStack's clients read the same frames.
"""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.streams.encoders import BothEncoder, LlamaBoxEncoder, chunk
from gguf_imagegen.api.streams.frames import frame
from gguf_imagegen.jobs.job import Job, JobEvent, Queued

GATEWAY = ("x-gpustack-model", "X-Target-Port")
"""Headers that GPUStack's gateway forwards with a request."""


def through_gateway(request: web.Request) -> bool:
    """Whether GPUStack's gateway reads the answer: it parses llama-box's chunks, whole ones in each read."""
    return any(name in request.headers for name in GATEWAY)


class GatewayEncoder(LlamaBoxEncoder):
    """Without comments: GPUStack's page takes one for the start of a frame, and loses all that follow."""

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        return no_news(self._job) if isinstance(event, Queued) else super().encode(id, event)


def no_news(job: Job) -> bytes:
    """A frame about no picture, in the place of a comment."""
    return frame({**chunk(job, {}, None), "data": []})


DIALECT = Dialect("llamabox", "llama-box", (), streams={"llama-box": LlamaBoxEncoder, "both": BothEncoder})
