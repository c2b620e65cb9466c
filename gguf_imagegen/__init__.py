"""Local image generation: GGUF diffusion models behind an HTTP API that streams every step."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, when somebody asks: to look it up takes 50 ms, which no worker has to spare."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("gguf-imagegen")
        except PackageNotFoundError:  # a folder on the path, not installed
            found = "0+unknown"
        globals()[name] = found
        return found
