"""Local image generation: GGUF diffusion models behind an HTTP API that streams every step."""

__version__ = "0.1.0"
