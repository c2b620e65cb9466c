"""Local image generation: GGUF diffusion models behind an HTTP API that streams every step."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gguf-imagegen")
except PackageNotFoundError:  # a folder on the path, not installed
    __version__ = "0+unknown"
