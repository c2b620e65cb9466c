"""The textual inversions that prompts name: files of the embedding folder that fit the model."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.embeddings import MOST_VECTORS, embedding_family, misfit, naming, vectors, width
from gguf_imagegen.modelfiles.header import SAFETENSORS
from gguf_imagegen.modelfiles.inspect import inspect_file
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Embedding
from gguf_imagegen.vocabulary.errors import InvalidModelFile, InvalidRequest, MissingAddon

FLAG = "--embedding-dir"
PICKLED = frozenset({".pt", ".bin"})
MOST_TOKENS = 16 * MOST_VECTORS
"""All embeddings of a prompt together, each as often as it is named."""
_SAID = re.compile(r"(?<![\w-])embedding:([^\s,:()\[\]<>]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A file of the folder; `fault` says why no model can use it, in words that follow its name."""

    name: str
    path: Path
    family: str = ""
    vectors: int = 0
    width: int = 0
    fault: str = ""

    def misfit(self, family: str) -> str:
        """Why a model of this family cannot use it; empty if it can."""
        return self.fault or misfit(self.family, family)


def listed_embeddings(folder: Path | None) -> list[Listed]:
    """Everything in the folder and below, by name. Reads headers: call it in a thread."""
    return [_listed(path) for _, path in sorted(_files(folder).items())]


def _files(folder: Path | None) -> Mapping[str, Path]:
    """By the names in small letters; of two files with one name the first counts, pickled ones last."""
    here = folder.rglob("*") if folder is not None and folder.is_dir() else ()
    files = sorted(
        (path for path in here if path.suffix.lower() in SAFETENSORS | PICKLED and path.is_file()),
        key=lambda path: (path.suffix.lower() in PICKLED, path),
        reverse=True,
    )
    return {path.stem.casefold(): path for path in files}


def _listed(path: Path) -> Listed:
    """What a file says of itself."""
    if path.suffix.lower() in PICKLED:
        return Listed(path.stem, path, fault="is pickled, which may run code; convert it to safetensors")
    try:
        header = inspect_file(path)
    except InvalidModelFile as exc:
        return Listed(path.stem, path, fault=f"cannot be used: {exc}")
    family = embedding_family(header)
    if family is None:
        return Listed(path.stem, path, fault="is no textual inversion for SD1, SD2 or SDXL")
    many = vectors(header)
    fault = f"has {many} vectors; at most {MOST_VECTORS} are taken" if many > MOST_VECTORS else ""
    return Listed(path.stem, path, family, many, width(header), fault)


def named_embeddings(
    prompts: Iterable[str], entry: Entry, settings: Settings, notes: list[str]
) -> tuple[Embedding, ...]:
    """Those that the prompts name, alone or as `embedding:NAME`; `notes` are told which have no effect.

    Raises MissingAddon for `embedding:` with a name that is not there, InvalidRequest for too many in one
    prompt.
    """
    files = _files(settings.embedding_dir)
    any_name = naming(files)
    counts: list[Counter[str]] = []
    for prompt in prompts:
        matches = list(any_name.finditer(prompt))
        _check_names(prompt, {match.start() for match in matches}, files)
        counts.append(Counter(match[1].casefold() for match in matches))
    found = {key: _listed(files[key]) for key in dict.fromkeys(key for count in counts for key in count)}
    fitting = {key: each for key, each in found.items() if not each.misfit(entry.family)}
    notes += [
        f"embedding: {each.name!r} {each.misfit(entry.family)}"
        for key, each in found.items()
        if key not in fitting
    ]
    for count in counts:
        _check_length(sum(each.vectors * count[key] for key, each in fitting.items()))
    return tuple(Embedding(each.name, each.path) for each in fitting.values())


def unheard(prompts: Iterable[str], elsewhere: Iterable[str], settings: Settings) -> list[str]:
    """Those of names of other machines' files that the prompts have and that mean nothing here."""
    here = _files(settings.embedding_dir)
    names = naming(name for name in elsewhere if name.casefold() not in here)
    found = (match[1].casefold() for prompt in prompts for match in names.finditer(prompt))
    return list(dict.fromkeys(found))


def _check_names(prompt: str, known: set[int], files: Mapping[str, Path]) -> None:
    """Whoever writes `embedding:` means a file; `known` are the places of those that there are."""
    unknown = next((match[1] for match in _SAID.finditer(prompt) if match.start() not in known), None)
    if unknown is None:
        return
    near = difflib.get_close_matches(unknown.casefold(), files, n=1)
    hint = f"did you mean {files[near[0]].stem!r}? " if near else ""
    names = ", ".join(sorted(path.stem for path in files.values()))
    there = f"known: {names}" if names else f"there are none; put files into the folder of {FLAG}"
    words = f"prompt: no textual inversion {unknown[:100]!r}; {hint}{there}"
    raise MissingAddon(words, param="prompt", flag=FLAG, name=unknown)


def _check_length(tokens: int) -> None:
    if tokens > MOST_TOKENS:
        raise InvalidRequest(
            f"prompt: its embeddings make {tokens} tokens, at most {MOST_TOKENS} are taken", param="prompt"
        )
