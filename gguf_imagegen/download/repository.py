"""From the address of any repository to a model that runs: its family, its quantisations, its missing parts.

What a file is, its header says, of which the first megabyte is read over HTTP; names count for the label of
a quantisation alone. Parts that are missing (VAE, text encoders) come from the repository itself, else from
what the catalog's models of the family take, else from the repository that this one was made from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import cast

from gguf_imagegen.catalog.address import Address, is_model_file
from gguf_imagegen.catalog.catalog import CAPABILITIES, Catalog
from gguf_imagegen.catalog.entry import Defaults, Entry, Source
from gguf_imagegen.download.hub import Repository
from gguf_imagegen.download.hubs import Hubs
from gguf_imagegen.download.remote import hub_header
from gguf_imagegen.modelfiles.companions import check_companions
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.inspect import (
    check_complete,
    component_of,
    context_width,
    embedding_width,
    family_of,
    holds_vae,
    inspect_file,
    missing_parts,
    parts_needed,
)
from gguf_imagegen.modelfiles.rename import needs_renaming, renamed
from gguf_imagegen.modelfiles.split import part_names
from gguf_imagegen.modelfiles.traits import traits_of
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import (
    HubFileNotFound,
    ImagegenError,
    InvalidModelFile,
    MissingComponent,
    PullFailed,
)

MOST_HEADERS = 48
"""Files of a repository that are looked into; none has so many quantisations."""
MOST_PARTS = 48
AT_ONCE = 6
MOST_BASES = 3
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_LABEL = re.compile(
    r"(?:^|[-_.])(I?Q\d(?:_(?:K|0|1|NL|XXS|XS|S|M|L|XL))*|BF16|FP?16|FP?32|FP8(?:_E\dM\d(?:FN)?)?)(?=$|[-_.])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Looked:
    """A file of a hub that was looked into."""

    source: Source
    header: Header

    @property
    def component(self) -> str:
        return component_of(self.header)

    @property
    def label(self) -> str:
        """The quantisation, as the name says it, else the type of most of the weights."""
        found = _LABEL.findall(PurePosixPath(self.source.file).stem)
        label = found[-1].upper() if found else next(iter(self.header.quantization), "F16")
        return re.sub(r"^FP(16|32)$", r"F\1", label)


@dataclass(frozen=True)
class Here:
    """A file of this machine that was looked into."""

    path: Path
    header: Header


class Finder:
    """Looks into repositories for models that this catalog does not know; every request is bounded."""

    def __init__(self, catalog: Catalog, given: Mapping[Role, Path | Address] = MappingProxyType({})) -> None:
        self._catalog = catalog
        self._given = given
        self._hubs = Hubs()

    def models(self, address: Address) -> list[Entry]:
        """The model of this address in all quantisations; an error in words if there is none that runs."""
        repository = self._hubs.repository(address.hub, address.repo, address.revision)
        looked, faults = self._look(_candidates(repository, address))
        mains = [each for each in looked if each.component in ("model", "diffusion")]
        runs = [each for each in mains if traits_of(family_of(each.header) or "")]
        if not runs:
            raise _nothing(address, looked, faults)
        given = {role: self._part_given(role, part) for role, part in self._given.items()}
        entries: dict[str, Entry] = {}
        for main in runs:
            others = [each for each in looked if each not in mains]
            try:
                entry = self._entry(address, main, others, repository, given)
            except ImagegenError as exc:
                faults.append(exc)
                continue
            if entry.quant in entries:
                stem = re.sub(r"[^A-Za-z0-9._-]+", "-", _stem(main.source.file)).lstrip("._-")
                entry = entry.model_copy(update={"quant": stem})
            entries[entry.quant] = entry
        if not entries:
            raise faults[0]
        return list(entries.values())

    def _look(self, files: Iterable[Source]) -> tuple[list[Looked], list[ImagegenError]]:
        """Into these files, in their order, and why others could not be."""
        looked: list[Looked] = []
        faults: list[ImagegenError] = []
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="headers") as pool:
            for found in pool.map(self._header, files):
                if isinstance(found, Looked):
                    looked.append(found)
                else:
                    faults.append(found)
        return looked, faults

    def _header(self, source: Source) -> Looked | ImagegenError:
        try:
            header = hub_header(self._hubs.of(source), source)
        except ImagegenError as exc:
            return exc
        if needs_renaming(header) and source.parts:
            return InvalidModelFile(
                f"{header.name}: its text encoders have names that the engine does not find, and it is split;"
                " take a file of one piece",
                param="model",
            )
        if needs_renaming(header):
            return Looked(source.model_copy(update={"rename": "text-encoders"}), renamed(header))
        return Looked(source, header)

    def _part_given(self, role: Role, part: Path | Address) -> Looked | Here:
        """What `--component` names: a file of this machine, or the one of this role in a repository."""
        if isinstance(part, Path):
            return Here(part.absolute(), inspect_file(part))
        looked, faults = self._look(
            _candidates(self._hubs.repository(part.hub, part.repo, part.revision), part)
        )
        of_role = [each for each in looked if each.component == role]
        found = next((each for each in looked if part.file in [one.file for one in each.source.pieces]), None)
        if found is None and not part.file and of_role:
            found = min(of_role, key=lambda each: each.label.lower() != part.quant.lower())
        if found is None:
            raise (
                faults[0]
                if faults
                else MissingComponent(
                    f"component: {part.name} has no {role}; name the file: {role}=hf.co/OWNER/REPO/FILE",
                    param="component",
                )
            )
        return found

    def _entry(
        self,
        address: Address,
        main: Looked,
        others: list[Looked],
        found: Repository,
        given: Mapping[Role, Looked | Here],
    ) -> Entry:
        family = family_of(main.header) or ""
        role: Role = "diffusion" if main.component == "diffusion" else "model"
        like = self._like(family, (address.repo, *found.base_models))
        headers: dict[Role, Header] = {role: main.header}
        headers |= {each: part.header for each, part in given.items()}
        check_companions(family, headers, {each: component_of(header) for each, header in headers.items()})
        sources: dict[Role, Source] = {role: main.source}
        for words, first in missing_parts(family, headers):
            roles = next(roles for said, roles in parts_needed(family) if said == words)
            part = self._part(cast("tuple[Role, ...]", roles), main, others, found, like)
            if part is None:
                raise MissingComponent(
                    f"{address.name} is a {family} model and lacks {words}, which is neither there nor in the"
                    f" catalog; give the files themselves: --model FILE --component {first}=FILE",
                    param="model",
                )
            sources[part[0]] = part[1]
        if like is not None:  # an edit sees its images by this
            sources |= {each: part for each, part in like.sources.items() if each == "llm_vision"}
        sources |= {each: part.source for each, part in given.items() if isinstance(part, Looked)}
        here = {each: part.path for each, part in given.items() if isinstance(part, Here)}
        sources = {each: source for each, source in sources.items() if each not in here}
        if set(sources) == {role}:
            check_complete(family, headers)
        return Entry(
            **_described(family, like),
            id=self._id(address),
            quant=main.label,
            aliases=(address.name,),
            description=f"{address.repo} ({family})",
            family=family,
            files={**{each: source.path for each, source in sources.items()}, **here},
            sources=sources,
            source=main.source.url,
            licence=found.licence,
            vae_inside=holds_vae(main.header),
        )

    def _like(self, family: str, names: Iterable[str]) -> Entry | None:
        """The catalog's model that this one is, or was made from."""
        known = (self._catalog.get(name) for name in names if self._catalog.knows(name))
        return next((entry for entry in known if entry.family == family), None)

    def _part(
        self,
        roles: tuple[Role, ...],
        main: Looked,
        others: list[Looked],
        found: Repository,
        like: Entry | None,
    ) -> tuple[Role, Source] | None:
        """A file for one of these roles: the repository's own, the catalog's, or the base model's."""
        own = _of_roles(roles, others, main.label)
        if own is not None:
            return own
        for role in roles:
            if (source := self._catalogs(role, main, like)) is not None:
                return role, source
        for base in found.base_models[:MOST_BASES]:
            try:
                listed = self._hubs.repository(main.source.hub, base)
            except PullFailed:
                continue
            looked, _ = self._look(_candidates(listed, None))
            if (part := _of_roles(roles, looked, main.label)) is not None:
                return part
        return None

    def _catalogs(self, role: Role, main: Looked, like: Entry | None) -> Source | None:
        """What the catalog's model of this family takes; among language models the one that fits by width."""
        family = family_of(main.header)
        entries = self._catalog.quants(like.id) if like else []
        if not any(role in entry.sources for entry in entries):
            entries = [e for one in self._catalog.entries for e in self._catalog.quants(one.id)]
        entries = [entry for entry in entries if entry.family == family and role in entry.sources]
        entries.sort(key=lambda entry: entry.quant != main.label)
        sources = list(dict.fromkeys(entry.sources[role] for entry in entries))
        context = context_width(main.header)
        if role != "llm" or like is not None or context is None:
            return next(iter(sources), None)
        for source in {source.repo: source for source in reversed(sources)}.values():
            looked = self._header(source)
            width = embedding_width(looked.header) if isinstance(looked, Looked) else None
            if width and context in (width, 3 * width):  # FLUX.2 takes three layers at once
                return source
        return None

    def _id(self, address: Address) -> str:
        """The repository's name, or the file's; with its owner where that means another model."""
        last = _stem(address.file) if address.file else address.repo.split("/")[1]
        names = [last, f"{address.repo.split('/')[0]}-{last}"]
        for name in (re.sub(r"[^A-Za-z0-9._-]+", "-", each).lstrip("._-") for each in names):
            if not self._catalog.knows(name) or address.name in self._catalog.get(name).aliases:
                return name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", address.name).lstrip("._-")


def _candidates(repository: Repository, address: Address | None) -> list[Source]:
    """The files to look into, the most likely first."""
    files = _wholes([each for each in repository.files if is_model_file(each.file)])
    if address is not None and address.file:
        named = [each for each in files if address.file in [piece.file for piece in each.pieces]]
        if not named:
            raise HubFileNotFound(f"the hub has no file {address.file!r} in {address.repo}")
        rest = [
            each for each in files if each not in named and (each.bytes or 0) < (named[0].bytes or 0) // 2
        ]
        return (named + rest)[:MOST_HEADERS]
    files.sort(key=lambda each: (each.file.count("/"), each.file))
    return files[:MOST_HEADERS]


def _wholes(files: list[Source]) -> list[Source]:
    """Files of one piece, and split GGUFs of which all parts are there."""
    by_name = {each.file: each for each in files}
    wholes = [each for each in files if not _SHARD.search(each.file)]
    for name in by_name:
        names = part_names(name)
        if names[:1] == (name,) and len(names) <= MOST_PARTS and all(part in by_name for part in names):
            wholes.append(_split([by_name[part] for part in names]))
    return wholes


def _split(pieces: list[Source]) -> Source:
    sizes = [piece.bytes for piece in pieces]
    parts = [piece.model_dump(include={"file", "bytes", "sha256"}) for piece in pieces]
    common = pieces[0].model_dump(include={"repo", "file", "revision", "hub", "gated"})
    total = sum(size for size in sizes if size) if all(sizes) else None
    return Source.model_validate({**common, "bytes": total, "parts": parts})


def _stem(file: str) -> str:
    """The name of a file, or of the one that it is a part of."""
    return PurePosixPath(_SHARD.sub("", file)).stem


def _of_roles(roles: Iterable[Role], looked: list[Looked], label: str) -> tuple[Role, Source] | None:
    """The first role that a file has; among several files one of the same quantisation."""
    for role in roles:
        fitting = [each for each in looked if each.component == role]
        if fitting:
            return role, min(fitting, key=lambda each: each.label != label).source
    return None


def _described(family: str, like: Entry | None) -> Mapping[str, object]:
    """Defaults and abilities: those of the model that it is like, else of its family."""
    if like is not None:
        fields = ("defaults", "limits", "capabilities", "edits", "zero_cond_t", "quality")
        return {field: getattr(like, field) for field in fields}
    traits = traits_of(family)
    assert traits is not None
    return {
        "defaults": Defaults.model_validate(traits.defaults),
        "capabilities": CAPABILITIES[traits.edit_mode],
    }


def _nothing(address: Address, looked: list[Looked], faults: list[ImagegenError]) -> ImagegenError:
    """Why there is nothing to run."""
    if not looked and faults:
        return faults[0]
    there = sorted({f"{family_of(each.header) or ''} {each.component}".strip() for each in looked})
    held = f"it holds: {', '.join(there)}" if there else "no GGUF or safetensors file is there that is whole"
    return InvalidModelFile(
        f"{address.name} has no picture model that this server can run; {held}. Look for a GGUF of it",
        param="model",
    )


def matching(entries: list[Entry], address: Address) -> Iterator[Entry]:
    """Those that the address means: all, or those of its quantisation."""
    said = address.quant.lower()
    exact = [entry for entry in entries if entry.quant.lower() == said]
    yield from exact or [entry for entry in entries if said in entry.quant.lower()]
