"""All settings in one frozen object, read once: flags, else `GGUF_IMAGEGEN_…` variables, else a TOML file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    TypeAdapter,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gguf_imagegen.machine import config_file, folders
from gguf_imagegen.machine.devices import NOWHERE, check_names
from gguf_imagegen.vocabulary.engine import Kernels, WeightType

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Words = Annotated[tuple[str, ...], NoDecode]
"""Comma-separated words in the environment, a tuple in code."""


@dataclass(frozen=True)
class Keep:
    """How much is kept: `size` bytes and for `age` seconds; None means without a limit."""

    size: int | None
    age: float | None


SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def _keep(value: object) -> object:
    """`10GB,30d`, either alone, or `none`."""
    if not isinstance(value, str):
        return value
    words = [word.strip().lower() for word in value.split(",")]
    if words in (["none"], ["0"]):
        return Keep(None, 0.0)
    ages = [match for word in words if (match := re.fullmatch(r"(\d+(?:\.\d+)?) ?([hdw])", word))]
    sizes = [word for word in words if re.fullmatch(r"\d+(\.\d+)? ?[kmgtp]i?b", word)]
    if len(ages) > 1 or len(sizes) > 1 or len(ages) + len(sizes) != len(words):
        raise ValueError("must be a size, an age or both, such as 10GB,30d; or none")
    size = TypeAdapter(ByteSize).validate_python(sizes[0]) if sizes else None
    return Keep(size, float(ages[0][1]) * SECONDS[ages[0][2]] if ages else None)


class Settings(BaseSettings):
    """Times are seconds, sizes as named. Field `x_y` is flag `--x-y` and variable `GGUF_IMAGEGEN_X_Y`.

    Raises ValidationError, or ConfigError for what is wrong with the file of `config` itself.
    """

    model_config = SettingsConfigDict(
        env_prefix="GGUF_IMAGEGEN_", frozen=True, extra="ignore", allow_inf_nan=False
    )

    config: Path | None = Field(None, description="TOML file of settings; flags and variables override it")

    # what is served
    model: str = Field(
        "embedded", description="catalog id, FILE.gguf, folder or hf.co/OWNER/REPO to serve by default"
    )
    served_model_name: Words = Field((), description="name(s) to serve it under; answers use the first one")
    component: Words = Field(
        (),
        description="ROLE=FILE or ROLE=hf.co/OWNER/REPO of that model, e.g. vae=ae.safetensors; or none",
    )
    alias: Words = Field((), description="NAME=ID: additional model names for requests")
    any_model: bool = Field(False, description="use the default model for unknown names")
    models_dir: Path = Field(default_factory=folders.models, description="folder of the model files")
    models_from: Path | None = Field(
        None, description="folder of another program, such as ComfyUI/models, whose models are served, too"
    )
    catalog: Path | None = Field(None, description="catalog file that adds to or overrides the built-in one")
    yes: bool = Field(False, description="fetch what an address of a hub names without asking")
    lora_dir: Path | None = Field(None, description="folder of LoRA files that requests may name")
    lora_names: Words = Field(
        (), description="NAME=FILE or NAME=@A:0.5+@B:0.4 of LoRAs that a request may name as its model"
    )
    upscaler_dir: Path | None = Field(None, description="folder of ESRGAN files that requests may name")
    control_dir: Path | None = Field(None, description="folder of ControlNets that requests may name")
    embedding_dir: Path | None = Field(None, description="folder of textual inversions that prompts may name")
    wildcards_dir: Path | None = Field(None, description="folder of text files for prompts of sets")

    styles: Path | None = Field(None, description="CSV file of prompt styles in AUTOMATIC1111's format")

    # where
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on, 0 picks a free one")
    public_url: str | None = Field(None, description="base of the URLs in answers, if behind a proxy")
    server_name: str | None = Field(
        None, pattern="^[a-z0-9]{1,32}$", description="name of this server, which ids of its jobs begin with"
    )
    root_path: str = Field("", description="path prefix of everything, page included, such as /img")
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="addresses and networks whose X-Forwarded-* and Forwarded headers count"
    )
    tls_cert: Path | None = Field(None, description="PEM file of a certificate chain, to speak TLS")
    tls_key: Path | None = Field(None, description="PEM file of its key, if that is not in --tls-cert")
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="key(s) clients must send")
    callers: Path | None = Field(None, description="YAML file of callers, each with a key and rights")
    insecure: bool = Field(False, description="allow listening beyond loopback without a key")
    cors_origins: Words = Field((), description="origins allowed to call from a browser, * for any")
    allowed_hosts: Words = Field((), description="further Host names accepted when no key is set")

    webhooks: Words = Field((), description="beginnings of addresses that requests may name as webhook")
    webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="key(s) to sign webhooks with, whsec_ and base64"
    )

    enhance_url: str | None = Field(
        None, description="base URL of an OpenAI-compatible API to enhance prompts"
    )
    enhance_model: str | None = Field(None, description="the model that does it")
    enhance_key: SecretStr | None = Field(None, description="key of that API")

    dialects: Words = Field(("all",), description="APIs to speak besides our own, such as openai,a1111")

    # the engine
    backend: str = Field("sdcpp", description="the engine: sdcpp, or a backend of your own")
    devices: Words = Field(("auto",), description="devices to use: auto, cpu, cuda:0,cuda:1, vulkan:0, hip:0")
    cpu_lanes: int = Field(1, ge=1, le=64, description="pictures made on the CPU at once, each more slowly")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of each lane, 0 = its share of the cores")
    kernels: Kernels = Field("auto", description="our kernels on the CPU: auto, f32, bf16, int8; off: ggml's")
    flash_attention: bool = Field(
        False, description="flash attention, by default on with CUDA and with our kernels"
    )
    diffusion_conv_direct: bool = Field(
        False, description="direct convolutions in a UNet, by default on with our kernels"
    )
    vae_conv_direct: bool = Field(
        False, description="direct convolutions in the VAE, by default on with our kernels"
    )
    huge_pages: bool = Field(False, description="huge pages for the engine's memory (Linux with glibc)")
    mmap: bool = Field(False, description="memory-map model files instead of reading them")
    tuning: bool = Field(True, description="use the options that tune found fastest on this machine")
    weight_type: WeightType | None = Field(
        None, description="convert weights that are not quantized to this type while loading, such as q8_0"
    )
    offload_to_cpu: bool = Field(False, description="keep weights in RAM, move to the GPU when used")
    vae_on_cpu: bool = Field(False, description="decode on the CPU")
    text_encoders_on_cpu: bool = Field(False, description="encode prompts on the CPU")
    control_net_on_cpu: bool = Field(False, description="run ControlNets on the CPU")
    max_vram: float = Field(
        0,
        ge=0,
        le=1024,
        description="GiB of graphics memory that one computation may take, in parts; 0 = no limit",
    )
    rng: Literal["cuda", "cpu"] = Field(
        "cuda", description="noise like AUTOMATIC1111 (cuda) or ComfyUI (cpu)"
    )
    sampler_rng: Literal["cuda", "cpu"] | None = Field(
        None, description="the same for the noise that samplers add, by default as --rng says"
    )
    load_timeout: float = Field(
        600, gt=0, description="give up loading a model without progress after this time"
    )

    # a cluster
    cluster: str | None = Field(None, description="use lanes of other machines, too: HOST:PORT, or auto")
    cluster_token: SecretStr | None = Field(None, description="token of the cluster")
    cluster_ports: str | None = Field(
        None, pattern=r"^\d{4,5}-\d{4,5}$", description="FIRST-LAST: all ports of Ray here but the head's"
    )
    insecure_cluster: bool = Field(False, description="a cluster without a token")

    # limits
    max_queue: int = Field(16, ge=1, description="jobs that may wait")
    max_body_mb: float = Field(64, gt=0, le=1e6, description="largest request body, MiB")
    max_input_pixels: int = Field(50_000_000, ge=64 * 64, description="largest image taken as input")
    max_pixels: int = Field(4_194_304, ge=64 * 64, description="largest image to make (width x height)")
    max_side: int = Field(16384, ge=64, description="longest side of an image to make")
    oversize: str = Field(
        "lanczos",
        min_length=1,
        description="sizes that a model cannot draw: enlarge with lanczos or with a file of"
        " --upscaler-dir, or refuse",
    )
    max_images: int = Field(10, ge=1, le=100, description="largest n")
    max_set: int = Field(200, ge=1, le=10_000, description="most pictures in a set")
    max_steps: int = Field(150, ge=1, le=1000, description="largest number of steps")
    min_pixels: int = Field(64 * 64, ge=64 * 64, description="smallest image to make (width x height)")
    min_side: int = Field(64, ge=64, description="shortest side of an image to make")
    min_steps: int = Field(1, ge=1, le=1000, description="smallest number of steps")
    default_size: str | None = Field(
        None, pattern=r"^\d{2,5}x\d{2,5}$", description="size of pictures if a request gives none"
    )
    default_steps: int | None = Field(None, ge=1, le=1000, description="steps if a request gives none")
    max_prompt_chars: int = Field(8000, ge=1, le=16000, description="longest prompt")

    # models in memory
    max_loaded: int = Field(1, ge=1, le=16, description="models in memory at once, per lane")
    memory_budget_mb: float = Field(
        0, ge=0, description="files of all loaded models together, MB; 0 = no limit"
    )
    memory_check: bool = Field(True, description="refuse models that cannot fit into memory")
    swap_after: float = Field(
        10, ge=0, description="how long a job may wait while others use the loaded model"
    )
    before_load: str | None = Field(
        None, description="URL or command that has another program free its memory before a model is loaded"
    )

    # time
    job_ttl: float = Field(3600, gt=0, description="how long finished jobs and their images can be read")
    return_time: float = Field(
        60, ge=0, description="after a crash of the server: how long a job waits for its client"
    )
    keep_alive: float = Field(300, description="unload a model after this idle time, -1 = never")
    grace: float = Field(20, ge=0, description="time for running and queued jobs at SIGTERM")
    heartbeat: float = Field(5, gt=0, le=10, description="SSE heartbeat interval")
    preview_interval: float = Field(0.1, ge=0, description="minimum time between two previews")

    # files and logs
    state_dir: Path = Field(
        default_factory=folders.state, description="folder of jobs and pictures, one server each"
    )
    ephemeral: bool = Field(False, description="store nothing")
    keep_pictures: Annotated[Keep, NoDecode, BeforeValidator(_keep)] = Field(  # type: ignore[assignment]  # read like a flag
        "10GB,30d",
        description="size and age limits of stored pictures, oldest deleted first; none = as long as jobs",
    )
    output_dir: Path | None = Field(
        None, description="folder to save pictures in for good, instead of the state folder"
    )
    provenance: bool = Field(True, description="say in each picture's XMP that a model made it")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_prompts: bool = Field(True, description="log the first words of each job's prompt")
    otlp_endpoint: str | None = Field(None, pattern="^https?://", description="where traces of jobs are sent")
    trace_prompts: bool = Field(False, description="traces have the prompts")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What comes first goes before."""
        path = init_settings().get("config") or env_settings().get("config")
        values = cls._read_config(Path(path)) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    @classmethod
    def _read_config(cls, path: Path) -> dict[str, object]:
        fields = {name: field.annotation for name, field in cls.model_fields.items() if name != "config"}
        return config_file.read(path.expanduser(), fields)

    def of_config(self) -> dict[str, object]:
        """What the file of `config` says, whether or not it counts."""
        return self._read_config(self.config) if self.config else {}

    @field_validator(
        "served_model_name",
        "component",
        "alias",
        "lora_names",
        "cors_origins",
        "devices",
        "allowed_hosts",
        "api_key",
        "webhooks",
        "webhook_secret",
        "dialects",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        path = "".join(f"/{part}" for part in value.split("/") if part)
        if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", path):
            raise ValueError("must be a path of letters, digits and .-_~, such as /img")
        return path

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)):
            return value
        try:
            return tuple(
                ipaddress.ip_network(str(word).strip(), strict=False) for word in words if str(word).strip()
            )
        except ValueError as exc:
            raise ValueError(f"{exc}; give addresses or networks such as 10.0.0.0/8") from None

    @field_validator("served_model_name")
    @classmethod
    def _names_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = next((name for name in value if not re.fullmatch(r"[^\s:/?#][^\s:?#]{0,199}", name)), None)
        if wrong is not None:
            raise ValueError(f"{wrong[:60]!r} is not a valid model name: no spaces, none of : ? #")
        return value

    @field_validator("devices")
    @classmethod
    def _devices_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value)
        return value

    @field_validator(
        "models_dir",
        "models_from",
        "catalog",
        "lora_dir",
        "upscaler_dir",
        "control_dir",
        "embedding_dir",
        "wildcards_dir",
        "styles",
        "state_dir",
        "output_dir",
        "callers",
        "tls_cert",
        "tls_key",
        "config",
    )
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else None

    @model_validator(mode="after")
    def _minima_leave_room(self) -> Settings:
        for least, most in (
            ("min_pixels", "max_pixels"), ("min_side", "max_side"), ("min_steps", "max_steps")
        ):  # fmt: skip
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} is {getattr(self, least)}, above {most}, {getattr(self, most)}")
        return self

    @model_validator(mode="after")
    def _something_computes(self) -> Settings:
        if self.devices == NOWHERE and not self.cluster:
            raise ValueError("devices none leaves nothing to compute on: set --cluster, too")
        return self

    @model_validator(mode="after")
    def _not_open_to_the_world(self) -> Settings:
        if not (self.keyed or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"refusing to listen on {self.host} without a key: set --api-key (or GGUF_IMAGEGEN_API_KEY)"
                " or --callers, or --insecure if everybody who can reach this address may use the server"
            )
        return self

    @property
    def keyed(self) -> bool:
        """Whether a key is needed to call."""
        return bool(self.api_key or self.callers)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1024 * 1024)


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
