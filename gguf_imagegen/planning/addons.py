"""Files that requests may name, each kind in a folder of its own and in folders of that."""

from __future__ import annotations

import difflib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gguf_imagegen.modelfiles.inspect import component_of, inspect_file
from gguf_imagegen.vocabulary.errors import InvalidRequest, MissingAddon

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


MAX_DEPTH = 4
MAX_FILES = 10_000


def names_in(folder: Path | None, kind: Kind) -> list[str]:
    """The names that requests may use: without suffixes, those in folders as `folder/name`."""
    return sorted(listed_files(folder, kind))


def listed_files(folder: Path | None, kind: Kind) -> dict[str, Path]:
    """The files that requests may name, by the name in the list."""
    found: dict[str, Path] = {}
    for path in _files_in(folder, kind):
        found.setdefault(listed_name(path, folder), path)
    return found


def listed_name(path: Path, folder: Path | None) -> str:
    """What the list calls a file of the folder."""
    return (path.relative_to(folder) if folder else path).with_suffix("").as_posix()


def named_file(name: str, folder: Path | None, kind: Kind) -> Path:
    """The file of this name, with or without its suffix; nothing but what lies in the folder can be named.

    The bare name will do for a file in a folder, if one alone has it. Raises MissingAddon, with the names
    that there are, if there is none, and InvalidRequest if its header is another kind's.
    """
    word, flag = _WORDS[kind]
    path = _found(name, folder, kind)
    if path is not None:
        if not _is_kind(path, kind):
            raise InvalidRequest(f"{kind}: {name!r} is no {word} file", param=kind)
        return path
    known = names_in(folder, kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    there = f"known: {', '.join(known)}" if known else f"there are none; put files into the folder of {flag}"
    words = f"{kind}: no {word} {name[:100]!r}; {hint}{there}"
    raise MissingAddon(words, param=kind, flag=flag, name=name)


def _found(name: str, folder: Path | None, kind: Kind) -> Path | None:
    """By comparing with what is there: by its place, else by the bare name, which must be one file's."""
    said = name.replace("\\", "/")
    files = _files_in(folder, kind)
    placed = (path for path in files if folder and said in _spellings(path.relative_to(folder)))
    if (path := next(placed, None)) is not None:
        return path
    bare = {listed_name(path, folder): path for path in reversed(files) if said in (path.stem, path.name)}
    if len(bare) > 1:
        raise InvalidRequest(
            f"{kind}: {name[:100]!r} lies in several folders; say which: {', '.join(sorted(bare))}",
            param=kind,
        )
    return next(iter(bare.values()), None)


def _spellings(place: Path) -> tuple[str, str]:
    return place.as_posix(), place.with_suffix("").as_posix()


def _files_in(folder: Path | None, kind: Kind) -> list[Path]:
    """By suffix, in the order of preference, then by place; names that are no text cannot be said."""
    suffixes = SUFFIXES[kind]
    here = _tree(folder) if folder is not None and folder.is_dir() else ()
    files = [path for path in here if path.suffix.lower() in suffixes and _is_text(str(path))]
    return sorted(
        (path for path in files if path.is_file()),
        key=lambda path: (suffixes.index(path.suffix.lower()), path.as_posix()),
    )


def _tree(folder: Path) -> Iterator[Path]:
    """Its files, and those of its folders; neither hidden ones nor links to folders, which may lead round."""
    left = MAX_FILES
    for where, folders, names in os.walk(folder):
        depth = len(Path(where).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if name[0] != "." and depth < MAX_DEPTH)
        for name in names[:left]:
            yield Path(where) / name
        left -= min(left, len(names))


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_kind(path: Path, kind: Kind) -> bool:
    """By its header; PyTorch's files are zip archives, in which sd.cpp itself looks for the tensors."""
    if path.suffix.lower() == ".pth":
        return zipfile.is_zipfile(path)
    return component_of(inspect_file(path)) == kind
