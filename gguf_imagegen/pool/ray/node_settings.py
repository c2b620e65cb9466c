"""What a node of a cluster is started with, in variables that its lanes inherit from Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil
from pydantic import SecretStr

from gguf_imagegen.settings import Settings

NAME: Final = "GGUF_IMAGEGEN_NODE_NAME"
FOLDER: Final = "GGUF_IMAGEGEN_NODE_FOLDER"
"""A folder of this node's own while it runs: lanes leave their numbers there, and see in it that it ends."""
PULL: Final = "GGUF_IMAGEGEN_NODE_PULL"
COMMAND: Final = "GGUF_IMAGEGEN_NODE_COMMAND"
"""The number of the process that started this node; KubeRay's nodes have none."""
LEAVING: Final = "leaving"

FAR: Final = (
    "kernels", "flash_attention", "diffusion_conv_direct", "vae_conv_direct", "huge_pages", "mmap",
    "weight_type", "offload_to_cpu", "vae_on_cpu", "text_encoders_on_cpu", "control_net_on_cpu", "max_vram",
    "rng", "sampler_rng", "memory_check",
)  # fmt: skip
"""Settings of how models are loaded, which the server decides for all lanes: they change pixels."""
NEAR: Final = (
    "models_dir", "lora_dir", "upscaler_dir", "control_dir", "embedding_dir", "backend", "devices",
    "cpu_lanes", "threads", "load_timeout", "before_load", "log_level",
)  # fmt: skip
"""Settings that are the node's own."""


def node_name() -> str:
    return os.environ.get(NAME) or socket.gethostname()


def is_abandoned() -> bool:
    """Whether the command that started this node was killed: Ray itself would go on for half a minute."""
    command = os.environ.get(COMMAND)
    if command is None:
        return False
    try:
        return psutil.Process(int(command)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pulls_models() -> bool:
    return bool(os.environ.get(PULL))


def is_leaving() -> bool:
    folder = os.environ.get(FOLDER)
    return folder is not None and (Path(folder) / LEAVING).exists()


def said(settings: Settings) -> dict[str, object]:
    """What a server has said of how models are loaded; the rest is left to the engine."""
    return {name: getattr(settings, name) for name in FAR if name in settings.model_fields_set}


def variables(settings: Settings, name: str, folder: Path, *, pulls: bool) -> dict[str, str]:
    """The node's own settings, as its lanes read them; called by its command."""
    own = {
        f"GGUF_IMAGEGEN_{field.upper()}": _text(getattr(settings, field))
        for field in NEAR
        if field in settings.model_fields_set
    }
    flag = {PULL: "1"} if pulls else {}
    return {**own, **flag, NAME: name, FOLDER: str(folder), COMMAND: str(os.getpid())}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys of the server are no business of its lanes."""
    secret = [name for name, field in Settings.model_fields.items() if SecretStr in _parts(field.annotation)]
    hidden = {f"GGUF_IMAGEGEN_{name.upper()}" for name in secret}
    return {name: value for name, value in environment.items() if name.upper() not in hidden}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value.absolute() if isinstance(value, Path) else value)


def _parts(annotation: object) -> list[object]:
    return [annotation, *getattr(annotation, "__args__", ())]
