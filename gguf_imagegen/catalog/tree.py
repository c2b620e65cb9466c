"""Models that lie in folders of other programs, found by their headers and served where they lie.

ComfyUI, AUTOMATIC1111 and Forge, InvokeAI and LM Studio each have their own tree; what a file is, and which
VAE and text encoders go with it, its tensors say. Folders as diffusers writes them are taken where sd.cpp
reads them (`ModelLoader::init_from_diffusers_file`): a UNet with its VAE and text encoders.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from gguf_imagegen.catalog.address import is_model_file
from gguf_imagegen.catalog.catalog import CAPABILITIES
from gguf_imagegen.catalog.entry import Defaults, Entry
from gguf_imagegen.modelfiles.header import Header, read_header
from gguf_imagegen.modelfiles.inspect import (
    check_complete,
    component_of,
    context_width,
    embedding_width,
    family_of,
    holds_vae,
    latent_channels,
    missing_parts,
    parts_needed,
)
from gguf_imagegen.modelfiles.traits import traits_of
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidModelFile, MissingComponent

MOST_FILES = 4000
DEEPEST = 10
DEADLINE = 30.0
"""Files, levels of folders and seconds after which a scan takes what it has found."""
INDEX = "model_index.json"
Tell = Callable[[str], None]
_DIFFUSERS: Mapping[Role, str] = {
    "diffusion": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "clip_l": "text_encoder/model.safetensors",
    "clip_g": "text_encoder_2/model.safetensors",
}
_LATENTS = {"sd1": 4, "sd2": 4, "sdxl": 4, "sd3": 16, "flux2": 32}
_USUAL_LATENTS = 16
_KIN = {"sd1": ("xl", "sd3"), "sd2": ("xl", "sd3"), "sd3": ("flux", "ae."), "flux": ("sd3", "sd35", "xl")}
"""Words in the names of VAEs that have as many channels and are of another family."""


@dataclass(frozen=True)
class _File:
    path: Path
    header: Header
    component: str


@dataclass(frozen=True)
class _Scan:
    """Files by their headers, and folders of diffusers."""

    files: list[_File] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def models_in(root: Path, taken: Iterable[str], tell: Tell = lambda words: None) -> list[Entry]:
    """All picture models below a folder; one that lacks a part says so in `unsupported`.

    `taken` are names that mean other models. `tell` hears of each file that cannot be used, and why.
    """
    scan, names, entries = _scanned(root.absolute(), tell), set(taken), list[Entry]()
    parts = [file for file in scan.files if file.component not in ("model", "diffusion")]
    for file in scan.files:
        if file.component in ("model", "diffusion") and traits_of(family_of(file.header) or "") is not None:
            entries.append(_entry(_free(file.path.stem, file.path, names), file, parts))
    for folder in scan.folders:
        try:
            entries.append(entry_of_diffusers(folder, _free(folder.name, folder, names)))
        except ImagegenError as exc:
            tell(str(exc))
    for entry in entries:
        if entry.unsupported:
            tell(f"{next(iter(entry.files.values())).name}: {entry.unsupported}")
    return entries


def entry_of_folder(folder: Path) -> Entry:
    """The one model of a folder: as diffusers wrote it, or a file with its parts beside it."""
    if (folder / INDEX).is_file() or (folder / "unet").is_dir():
        return entry_of_diffusers(folder, _name(folder.absolute().name))
    found = models_in(folder, ())
    runs = [entry for entry in found if not entry.unsupported]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise InvalidModelFile(
            f"{folder.name}: {found[0].unsupported if found else 'no picture model is in this folder'}",
            param="model",
        )
    names = ", ".join(entry.id for entry in runs)
    raise InvalidModelFile(
        f"{folder.name}: there are several models ({names}); name one file, or serve all with --models-from",
        param="model",
    )


def entry_of_diffusers(folder: Path, id: str) -> Entry:
    """A folder that diffusers wrote."""
    folder = folder.absolute()
    files = {role: folder / name for role, name in _DIFFUSERS.items() if (folder / name).is_file()}
    if "diffusion" not in files:
        kind = "a transformer" if (folder / "transformer").is_dir() else f"no {_DIFFUSERS['diffusion']}"
        raise InvalidModelFile(
            f"{folder.name}: this diffusers folder has {kind}; sd.cpp reads those with a UNet in one"
            " safetensors file; take a GGUF of the model",
            param="model",
        )
    headers = {role: read_header(path) for role, path in files.items()}
    family = family_of(_as_loaded(headers["diffusion"]))
    if family is None or traits_of(family) is None:
        raise InvalidModelFile(
            f"{folder.name}: this UNet is of no family that this server runs", param="model"
        )
    check_complete(family, headers)
    return _described(id, f"{folder.name} ({family}, diffusers)", family, files, "")


def _as_loaded(unet: Header) -> Header:
    """A UNet under the names that sd.cpp gives it when it reads the folder."""
    return replace(unet, tensors={f"unet.{name}": tensor for name, tensor in unet.tensors.items()})


def _scanned(root: Path, tell: Tell) -> _Scan:
    """Headers of the files below a folder; what cannot be read is told, links to folders are passed over."""
    scan, until = _Scan(), time.monotonic() + DEADLINE
    for seen, path in enumerate(_walked(root, scan.folders)):
        if seen >= MOST_FILES or time.monotonic() > until:
            tell(f"only the first {seen} files were looked at: there are too many, or it took too long")
            break
        try:
            if stat.S_ISREG(path.stat().st_mode):
                header = read_header(path)
                scan.files.append(_File(path, header, component_of(header)))
        except ImagegenError as exc:
            tell(str(exc))
        except OSError as exc:
            tell(f"{path.name}: it cannot be read ({exc.strerror})")
    return scan


def _walked(root: Path, diffusers: list[Path]) -> Iterator[Path]:
    """Model files in the order of their names; a folder of diffusers is noted, and not entered."""
    for place, folders, names in os.walk(root):
        here = Path(place)
        if INDEX in names:
            diffusers.append(here)
            folders.clear()
            continue
        if len(here.relative_to(root).parts) >= DEEPEST:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(names) if is_model_file(name) and not name.startswith("."))


def _entry(id: str, main: _File, parts: list[_File]) -> Entry:
    family = family_of(main.header) or ""
    role: Role = "diffusion" if main.component == "diffusion" else "model"
    files: dict[Role, Path] = {role: main.path}
    headers: dict[Role, Header] = {role: main.header}
    lacks = []
    for words, _ in missing_parts(family, headers):
        roles = next(roles for said, roles in parts_needed(family) if said == words)
        part = _part(roles, family, main.header, parts)
        if part is None:
            lacks.append(words)
        else:
            found = cast(Role, part.component)
            files[found], headers[found] = part.path, part.header
    fault = f"it lacks {' and '.join(lacks)}" if lacks else ""
    try:
        if not fault:
            check_complete(family, headers)
    except (InvalidModelFile, MissingComponent) as exc:
        fault = str(exc)
    entry = _described(id, f"{main.path.name} ({family})", family, files, fault)
    return entry.model_copy(update={"vae_inside": holds_vae(main.header)})


def _described(id: str, words: str, family: str, files: Mapping[Role, Path], fault: str) -> Entry:
    traits = traits_of(family)
    assert traits is not None
    return Entry(
        id=id,
        description=words,
        family=family,
        files=files,
        unsupported=fault,
        defaults=Defaults.model_validate(traits.defaults),
        capabilities=CAPABILITIES[traits.edit_mode],
    )


def _part(roles: Iterable[str], family: str, main: Header, parts: list[_File]) -> _File | None:
    """The first file of one of these roles that goes with the model."""
    for role in roles:
        for part in parts:
            if part.component == role and _goes_with(part, family, main):
                return part
    return None


def _goes_with(part: _File, family: str, main: Header) -> bool:
    """By what the tensors say; VAEs of SD and SDXL, and of SD3 and FLUX, differ in their names alone."""
    kind = re.sub("-.*", "", family) if family.startswith("sd") or family == "flux-fill" else family
    name = part.path.name.lower()
    if part.component in ("vae", "taesd"):
        if latent_channels(part.header) != _LATENTS.get(kind, _USUAL_LATENTS):
            return False
        if kind == "sdxl":
            return "xl" in name
        return not any(word in name for word in _KIN.get(kind, _KIN["flux"]))
    if part.component == "llm":
        width, context = embedding_width(part.header), context_width(main)
        return width is not None and context in (width, 3 * width)
    return True


def _free(stem: str, path: Path, names: set[str]) -> str:
    """A name that means nothing else yet: the file's, its folder's with it, or numbered."""
    name = _name(stem)
    choices = [name, _name(f"{path.parent.name}-{stem}"), *(f"{name}-{n}" for n in range(2, MOST_FILES))]
    free = next(each for each in choices if each not in names)
    names.add(free)
    return free


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-") or "model"
