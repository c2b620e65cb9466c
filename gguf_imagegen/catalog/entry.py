"""One model as the catalog describes it: files, where they come from, defaults, limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from gguf_imagegen.catalog.address import HUGGINGFACE, MODELSCOPE, HubName
from gguf_imagegen.modelfiles.traits import EditMode, Traits, traits_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Decoder, Prediction, Rng, Role, Seamless, StepCache, WeightType

PACKAGED = Path(__file__).parents[1] / "embedded"
"""Where the files of the model lie that comes with this package."""
_PART_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
UNSUPPORTED = Traits(64, latent_preview=False)
Capability = Literal["text-to-image", "image-to-image", "inpainting", "reference-edit"]


def _size(value: object) -> object:
    match = re.fullmatch(r"(\d+)[x*](\d+)", value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else value


Size = Annotated[tuple[int, int], BeforeValidator(_size)]


class Strict(BaseModel):
    """Unknown keys are faults, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _stays_inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value or not path.parts:
        raise ValueError("is not a path inside a repository")
    return value


RepositoryFile = Annotated[str, AfterValidator(_stays_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(Strict):
    """One of the files that a split model lies in."""

    file: RepositoryFile
    bytes: int | None = Field(None, ge=1)
    sha256: Sha256 | None = None


class Source(Strict):
    """A file of a repository of a hub; `bytes` and `sha256` only where a source states them.

    With `rename` the file is rewritten after the download so that sd.cpp finds its text encoders
    (`modelfiles.rename`); the hash is that of the file as downloaded. A split GGUF has `parts`, of which
    `file` is the first: they are joined (`modelfiles.split`), and `bytes` is what all of them have.
    """

    repo: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
    file: RepositoryFile
    revision: str = Field("main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    bytes: int | None = Field(None, ge=1)
    sha256: Sha256 | None = None
    gated: bool = False
    licence: str | None = None
    hub: HubName = "huggingface"
    rename: Literal["text-encoders"] | None = None
    parts: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _begins_with_its_file(self) -> Source:
        if self.parts and (self.parts[0].file != self.file or self.rename):
            raise ValueError("parts: the first is not `file`, or there is `rename`, which takes a whole file")
        return self

    @property
    def folder(self) -> Path:
        """Where the files of the repository lie in the models folder."""
        return Path(self.repo) if self.hub == "huggingface" else Path("modelscope.cn") / self.repo

    @property
    def downloaded(self) -> Path:
        """Where the file as it is on the hub lies in the models folder, or its first part."""
        return self.folder / self.file

    @property
    def pieces(self) -> tuple[Source, ...]:
        """The files as they are on the hub: this one, or its parts."""
        if not self.parts:
            return (self,)
        common = self.model_dump(include={"repo", "revision", "gated", "hub"})
        return tuple(Source.model_validate({**common, **part.model_dump()}) for part in self.parts)

    @property
    def rewritten(self) -> bool:
        """Whether what is loaded is made here from what the hub has."""
        return bool(self.rename or self.parts)

    @property
    def published(self) -> str | None:
        """The hash of what the hub has, as far as it is stated: of parts that of all their hashes."""
        hashes = [piece.sha256 for piece in self.pieces]
        return hash_of_parts([each for each in hashes if each]) if self.parts and all(hashes) else self.sha256

    @cached_property
    def path(self) -> Path:
        """Where the file that is loaded lies in the models folder."""
        whole = self.downloaded
        if self.parts:
            return whole.with_name(f"{_PART_NUMBER.sub('', whole.stem)}.joined{whole.suffix}")
        return whole.with_name(f"{whole.stem}.{self.rename}{whole.suffix}") if self.rename else whole

    @property
    def url(self) -> str:
        """The page of the repository."""
        return (
            f"{HUGGINGFACE}/{self.repo}" if self.hub == "huggingface" else f"{MODELSCOPE}/models/{self.repo}"
        )


def hash_of_parts(hashes: Iterable[str]) -> str:
    """One hash for all parts of a file, from theirs in hexadecimal."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


class Defaults(Strict):
    """Used where a request is silent; `size` is (width, height) in pixels."""

    size: Size = (512, 512)
    steps: int = Field(20, ge=1)
    sampler: str = "euler"
    schedule: str = "default"
    cfg_scale: float = Field(7.0, ge=0)
    guidance: float = Field(3.5, ge=0)
    strength: float = Field(0.75, ge=0, le=1)
    clip_skip: int = -1
    flow_shift: float | None = None
    step_cache: StepCache = "none"

    @field_validator("cfg_scale")
    @classmethod
    def _no_guidance_is_1(cls, value: float) -> float:
        return max(value, 1.0)


class Limits(Strict):
    """Bounds that the model states; those of the family and the server hold, too (`planning.bounds`).

    `references` is how many images an edit by reference takes, no more than the family does; `cfg_scale` the
    most that a distilled model takes.
    """

    max_side: int | None = Field(None, ge=64)
    max_pixels: int | None = Field(None, ge=4096)
    max_steps: int | None = Field(None, ge=1)
    references: int | None = Field(None, ge=1, le=16)
    cfg_scale: float | None = Field(None, ge=1)


class EngineOptions(Strict):
    """How this model is loaded: over the flags of the same names, and what only a model can say.

    None leaves it to the flags and the engine. The last five are fields of sd.cpp's `sd_ctx_params_t`.
    """

    flash_attention: bool | None = None
    diffusion_conv_direct: bool | None = None
    vae_conv_direct: bool | None = None
    mmap: bool | None = None
    offload_to_cpu: bool | None = None
    vae_on_cpu: bool | None = None
    text_encoders_on_cpu: bool | None = None
    control_net_on_cpu: bool | None = None
    max_vram: float | None = Field(None, ge=0, le=1024)
    rng: Rng | None = None
    sampler_rng: Rng | None = None
    prediction: Prediction | None = None
    force_sdxl_vae_conv_scale: bool | None = None
    chroma_use_dit_mask: bool | None = None
    chroma_use_t5_mask: bool | None = None
    chroma_t5_mask_pad: int | None = Field(None, ge=0, le=512)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are said, by name."""
        return self.model_dump(exclude_none=True)

    def over(self, settings: Settings) -> Settings:
        """The settings as this model wants them."""
        own = {name: value for name, value in self.given.items() if name in Settings.model_fields}
        return settings.model_copy(update=own) if own else settings


class Entry(Strict):
    """One model in one quantisation: what is loaded when it is asked for.

    `files` are names inside the models folder, or absolute paths for a bare file; those of a `packaged`
    model lie in this package. `decoder` makes the pictures where a TAESD stands beside a VAE;
    `vae_inside` says that the main file holds a VAE. `sources` says where files come from that can be
    pulled, `engine` how it is loaded. `weight_type` is what weights that are not quantised are converted to
    while they are loaded, for None as the settings say. `native` is the size at whose area sizes beyond the
    limits are drawn. A model that this engine cannot run says why in `unsupported`. `examples` are prompts to
    try; `vocabulary` is a file beside those of a packaged model that lists all it knows
    (`catalog.vocabulary`).
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    quant: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""
    examples: tuple[str, ...] = ()
    vocabulary: Path | None = None
    family: str
    files: Mapping[Role, Path]
    sources: Mapping[Role, Source] = {}
    packaged: bool = False
    source: str = ""
    licence: str = "unknown"
    unsupported: str = ""
    edits: EditMode | None = None
    zero_cond_t: bool = False
    seamless: Seamless | None = None
    engine: EngineOptions = EngineOptions()
    weight_type: WeightType | None = None
    vae_inside: bool = False
    decoder: Decoder = "full"
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    native: Size | None = None
    capabilities: tuple[Capability, ...] = ("text-to-image", "image-to-image", "inpainting")
    quality: Mapping[Literal["low", "medium", "high", "xhigh", "max"], int] = {}

    @model_validator(mode="after")
    def _family_is_known(self) -> Entry:
        if traits_of(self.family) is None and not self.unsupported:
            raise ValueError(f"family: {self.family!r} is not one this server can run")
        if (self.limits.references or 0) > self.traits.references:
            raise ValueError(f"limits.references: {self.family} takes at most {self.traits.references}")
        return self

    @property
    def traits(self) -> Traits:
        """Those of the family; a model that cannot be run has traits that promise nothing."""
        return traits_of(self.family) or UNSUPPORTED

    @property
    def known_words(self) -> Path | None:
        """The file of all that the model knows by name, if it knows no more than that."""
        return PACKAGED / self.vocabulary if self.vocabulary and self.packaged else None

    @property
    def edit_mode(self) -> EditMode:
        """How an image that comes with the prompt is used: as the entry says, else as its family does."""
        return self.edits or self.traits.edit_mode

    @property
    def decoders(self) -> tuple[Decoder, ...]:
        """Those to choose from, the model's own first."""
        both = "taesd" in self.files and self.has_vae
        return (self.decoder, "tiny" if self.decoder == "full" else "full") if both else (self.decoder,)

    @property
    def has_vae(self) -> bool:
        return self.vae_inside or "vae" in self.files

    @property
    def required(self) -> Mapping[Role, Path]:
        """The files that it takes to run: beside a VAE a TAESD is for previews and for who asks for it."""
        return {role: path for role, path in self.files.items() if role != "taesd" or not self.has_vae}

    def with_defaults(self, defaults: Mapping[str, object]) -> Entry:
        """The model with some other defaults."""
        changed = Defaults.model_validate({**self.defaults.model_dump(), **defaults})
        return self.model_copy(update={"defaults": changed})

    def without(self, *roles: Role) -> Entry:
        """The model without its files for these roles."""
        files = {role: path for role, path in self.files.items() if role not in roles}
        sources = {role: source for role, source in self.sources.items() if role not in roles}
        return self.model_copy(update={"files": files, "sources": sources})

    def serves(self, other: Entry) -> bool:
        """Whether who has loaded this model has the other one too: a ControlNet can be left unused."""
        return other in (self, self.without("control_net"))

    @property
    def name(self) -> str:
        """The id with the quantisation, as `pull` takes it."""
        return f"{self.id}:{self.quant}" if self.quant else self.id
