"""How sd.cpp is told of a model's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gguf_imagegen.vocabulary.engine import Role

PATH_FIELDS: Final[Mapping[Role, str]] = {
    "model": "model_path",
    "diffusion": "diffusion_model_path",
    "clip_l": "clip_l_path",
    "clip_g": "clip_g_path",
    "clip_vision": "clip_vision_path",
    "t5xxl": "t5xxl_path",
    "llm": "llm_path",
    "llm_vision": "llm_vision_path",
    "vae": "vae_path",
    "taesd": "taesd_path",
    "control_net": "control_net_path",
}


def path_fields(files: Mapping[Role, Path]) -> dict[str, Path]:
    """The files by field of the parameters.

    A UNet in a folder of diffusers is named by that folder: sd.cpp tells its family, and gives its tensors
    their names, only where it reads the folder itself (`ModelLoader::init_from_diffusers_file`).
    """
    unet = files.get("diffusion")
    if unet is None or unet.parent.name != "unet" or unet.name != "diffusion_pytorch_model.safetensors":
        return {name: files[role] for role, name in PATH_FIELDS.items() if role in files}
    folder = unet.parents[1]
    rest = {
        name: files[role]
        for role, name in PATH_FIELDS.items()
        if role in files and not files[role].is_relative_to(folder)
    }
    return {"model_path": folder, **rest}
