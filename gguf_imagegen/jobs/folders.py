"""Files that requests may name by their bare names: LoRAs and upscalers, each kind in a folder of its own."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from pathlib import Path
from typing import Literal

from gguf_imagegen.catalog.inspect import component_of, inspect_file
from gguf_imagegen.errors import InvalidRequest

Kind = Literal["lora", "upscaler"]
MAX_NAME_BYTES = 240
"""A longer one, with its suffix, is no name to a file system: asking for it is an error of its own."""
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "lora": (".safetensors", ".gguf"),
    "upscaler": (".safetensors", ".gguf", ".pth"),
}
_WORDS: dict[Kind, tuple[str, str]] = {
    "lora": ("LoRA", "--lora-dir"),
    "upscaler": ("upscaler", "--upscaler-dir"),
}


def names_in(folder: Path | None, kind: Kind) -> list[str]:
    """The names that requests may use, without suffixes."""
    here = folder.iterdir() if folder is not None and folder.is_dir() else ()
    return sorted({path.stem for path in here if path.suffix in SUFFIXES[kind]})


def named_file(name: str, folder: Path | None, kind: Kind) -> Path:
    """The file of this bare name, with or without its suffix; nothing outside the folder can be named.

    Raises InvalidRequest, with the names that there are, if there is none or its header is another kind's.
    """
    word, flag = _WORDS[kind]
    fits = len(os.fsencode(name)) <= MAX_NAME_BYTES
    if folder is not None and fits and re.fullmatch(r"[A-Za-z0-9][\w. +()-]*", name):
        for suffix in ("", *SUFFIXES[kind]):
            path = folder / f"{name}{suffix}"
            if path.suffix in SUFFIXES[kind] and path.is_file():
                if not _is_kind(path, kind):
                    raise InvalidRequest(f"{kind}: {name!r} is no {word} file", param=kind)
                return path
    known = names_in(folder, kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    there = f"known: {', '.join(known)}" if known else f"there are none; put files into the folder of {flag}"
    raise InvalidRequest(f"{kind}: no {word} {name[:100]!r}; {hint}{there}", param=kind)


def _is_kind(path: Path, kind: Kind) -> bool:
    """By its header; PyTorch's files are zip archives, in which sd.cpp itself looks for the tensors."""
    if path.suffix == ".pth":
        return zipfile.is_zipfile(path)
    return component_of(inspect_file(path)) == kind
