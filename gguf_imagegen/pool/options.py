"""What may be tuned: options of the engine that make no picture better or worse, only sooner or later."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Kernels, LoadSpec


class Options(BaseModel):
    """Values that differ from the defaults; None leaves the default.

    Each is a field of `LoadSpec` and, by the same name, one of `Settings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threads: int | None = Field(None, ge=1, le=1024)
    kernels: Kernels | None = None
    flash_attention: bool | None = None
    diffusion_conv_direct: bool | None = None
    vae_conv_direct: bool | None = None
    huge_pages: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        return self.model_dump(exclude_none=True)

    @property
    def words(self) -> str:
        """`threads 4, flash attention`; `nothing changed` for none."""
        return ", ".join(_words(name, value) for name, value in self.given.items()) or "nothing changed"

    def also(self, other: Options) -> Options:
        """These, with what `other` says instead."""
        return self.model_copy(update=other.given)

    def unless_said(self, settings: Settings) -> Options:
        """These without what the user has said by flag or environment."""
        return Options(**{n: v for n, v in self.given.items() if n not in settings.model_fields_set})

    def applied(self, spec: LoadSpec) -> LoadSpec:
        return replace(spec, **self.given)


def _words(name: str, value: int | bool | str) -> str:
    plain = name.replace("_", " ")
    return plain if value is True else f"no {plain}" if value is False else f"{plain} {value}"
