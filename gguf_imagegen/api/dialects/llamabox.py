"""llama-box's streams on OpenAI's image routes, which have its fields too: a frame for each step.

https://github.com/gpustack/llama-box; GPUStack's clients read the same frames.
"""

from __future__ import annotations

from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.streams.encoders import BothEncoder, LlamaBoxEncoder

DIALECT = Dialect("llamabox", "llama-box", (), streams={"llama-box": LlamaBoxEncoder, "both": BothEncoder})
