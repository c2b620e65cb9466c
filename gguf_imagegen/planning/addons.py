"""Files that requests name by their bare names, each kind in a folder of its own."""

from __future__ import annotations

import difflib
import zipfile
from pathlib import Path
from typing import Literal

from gguf_imagegen.modelfiles.inspect import component_of, inspect_file
from gguf_imagegen.vocabulary.errors import InvalidRequest

Kind = Literal["lora", "upscaler", "control_net"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "lora": (".safetensors", ".sft", ".gguf"),
    "upscaler": (".safetensors", ".sft", ".gguf", ".pth"),
    "control_net": (".safetensors", ".sft", ".gguf"),
}
_WORDS: dict[Kind, tuple[str, str]] = {
    "lora": ("LoRA", "--lora-dir"),
    "upscaler": ("upscaler", "--upscaler-dir"),
    "control_net": ("ControlNet", "--control-dir"),
}


def names_in(folder: Path | None, kind: Kind) -> list[str]:
    """The names that requests may use, without suffixes."""
    return sorted({path.stem for path in _files_in(folder, kind)})


def named_file(name: str, folder: Path | None, kind: Kind) -> Path:
    """The file of this name, with or without its suffix; nothing but what lies in the folder can be named.

    Raises InvalidRequest, with the names that there are, if there is none or its header is another kind's.
    """
    word, flag = _WORDS[kind]
    path = next((path for path in _files_in(folder, kind) if name in (path.stem, path.name)), None)
    if path is not None:
        if not _is_kind(path, kind):
            raise InvalidRequest(f"{kind}: {name!r} is no {word} file", param=kind)
        return path
    known = names_in(folder, kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    there = f"known: {', '.join(known)}" if known else f"there are none; put files into the folder of {flag}"
    raise InvalidRequest(f"{kind}: no {word} {name[:100]!r}; {hint}{there}", param=kind)


def _files_in(folder: Path | None, kind: Kind) -> list[Path]:
    """By suffix, in the order of preference, then by name; names that are no text cannot be said."""
    here = folder.iterdir() if folder is not None and folder.is_dir() else ()
    suffixes = SUFFIXES[kind]
    files = [path for path in here if path.suffix.lower() in suffixes and _is_text(path.name)]
    return sorted(
        (path for path in files if path.is_file()),
        key=lambda path: (suffixes.index(path.suffix.lower()), path.name),
    )


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_kind(path: Path, kind: Kind) -> bool:
    """By its header; PyTorch's files are zip archives, in which sd.cpp itself looks for the tensors."""
    if path.suffix.lower() == ".pth":
        return zipfile.is_zipfile(path)
    return component_of(inspect_file(path)) == kind
