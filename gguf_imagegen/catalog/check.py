"""Faults of a catalog that its own rules let pass, one by one: what cannot work or contradicts itself.

What has changed on the hub since is `gguf_imagegen.download.drift`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gguf_imagegen.catalog.catalog import builtin_text
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.parse import CatalogError, parse_catalog
from gguf_imagegen.modelfiles.inspect import parts_needed
from gguf_imagegen.modelfiles.rename import RENAMED_FAMILIES
from gguf_imagegen.modelfiles.traits import traits_of

SUFFIXES = {".gguf", ".safetensors", ".pth"}
QUALITIES = ("low", "medium", "high", "xhigh", "max")
_UNREAD_ENCODERS = ("gpustack/",)
"""Owners of repositories whose SD3 and FLUX files must be renamed."""


@dataclass(frozen=True)
class Finding:
    """`where` is the file, the entry and the field; a finding that is no `fault` is for information."""

    where: str
    words: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{'FAULT' if self.fault else 'note':5} {self.where}: {self.words}"


@dataclass(frozen=True)
class Words:
    """Names that a request may use, which a catalog must keep to."""

    samplers: Collection[str]
    schedules: Collection[str]


@dataclass(frozen=True)
class Checked:
    """What was found, what could be read all the same, and each file with the place that names it."""

    findings: list[Finding]
    entries: list[Entry]
    components: Mapping[str, Source]
    sources: Mapping[str, Source]


def check_catalogs(extra: Path | None, words: Words) -> Checked:
    """The built-in catalog, and the file `extra`, which may name its components."""
    own = check_text(builtin_text(), "model_catalog.yaml", words)
    if extra is None:
        return own
    try:
        text = extra.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CatalogError(f"{extra.name}: cannot be read: {type(exc).__name__}") from exc
    more = check_text(text, extra.name, words, own.components)
    return Checked(
        [*own.findings, *more.findings],
        [*own.entries, *more.entries],
        more.components,
        {**own.sources, **more.sources},
    )


def check_text(text: str, name: str, words: Words, known: Mapping[str, Source] | None = None) -> Checked:
    """A catalog's text; `known` are components of another file that this one may name."""
    faults, entries, components = _parse(text, name, known or {})
    own = {key: source for key, source in components.items() if key not in (known or {})}
    sources = {f"{name}: components.{key}": source for key, source in own.items()}
    for entry in entries:
        sources |= {f"{name}: {entry.name}: files.{role}": s for role, s in entry.sources.items()}
    found = [Finding(f"{name}: {where}", said) for e in entries for where, said in _entry(e, words)]
    found += [Finding(f"{name}: {where}", said) for where, said in _names(entries)]
    found += [Finding(where, said) for where, said in _contradictions(sources)]
    findings = list(dict.fromkeys([*_doubles(text, name), *faults, *found]))
    return Checked(findings, entries, components, sources)


def _parse(
    text: str, name: str, known: Mapping[str, Source]
) -> tuple[list[Finding], list[Entry], dict[str, Source]]:
    """The whole text; if it is wrong, each of its models alone, so that one fault does not hide others."""
    try:
        return [], *parse_catalog(text, name, known)
    except CatalogError as exc:
        whole = _finding(exc, name)
    faults: list[Finding] = []
    entries: list[Entry] = []
    components: dict[str, Source] = {}
    content = _loaded(text)
    models = content.get("models")
    for key, value in models.items() if isinstance(models, dict) else ():
        try:
            found, components = parse_catalog(
                yaml.safe_dump({**content, "models": {key: value}}, sort_keys=False), name, known
            )
            entries += found
        except CatalogError as exc:
            faults.append(_finding(exc, name))
    return list(dict.fromkeys([*faults] if whole in faults else [whole, *faults])), entries, components


def _loaded(text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _finding(exc: CatalogError, name: str) -> Finding:
    return Finding(name, " ".join(str(exc).removeprefix(f"{name}: ").split()))


def _doubles(text: str, name: str) -> Iterator[Finding]:
    """Keys that stand twice in one place: YAML's reader silently takes the last."""
    try:
        nodes = [("", yaml.compose(text, yaml.CSafeLoader))]
    except yaml.YAMLError:
        return
    visited: set[int] = set()  # YAML can refer to a node from within it
    while nodes:
        where, node = nodes.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in visited:
            continue
        visited.add(id(node))
        seen: set[str] = set()
        for key, value in node.value:
            place = f"{where}.{key.value}".lstrip(".")
            if key.value in seen:
                yield Finding(f"{name}: {place}", f"stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
            nodes.append((place, value))


def _entry(entry: Entry, words: Words) -> Iterator[tuple[str, str]]:
    """What is wrong with one entry by itself."""
    if traits_of(entry.family) is None or entry.unsupported:
        return
    yield from ((f"{entry.name}: files", said) for said in _files(entry))
    yield from ((f"{entry.id}: defaults", said) for said in _settings(entry, words))
    yield from ((f"{entry.id}: capabilities", said) for said in _capabilities(entry))


def _files(entry: Entry) -> Iterator[str]:
    main = {"model", "diffusion"} & entry.files.keys()
    if len(main) != 1:
        yield "a model has one file of the role model, or diffusion"
    if main == {"diffusion"}:
        for part, roles in parts_needed(entry.family):
            if not any(role in entry.files for role in roles):
                yield f"{part} is missing, give {' or '.join(roles)}"
    for role, path in entry.files.items():
        if path.suffix not in SUFFIXES:
            yield f"{role}: {path.name} is neither .gguf nor .safetensors"
    for role, source in entry.sources.items():
        if source.rename and (entry.family not in RENAMED_FAMILIES or role != "model"):
            yield f"{role}: only whole SD3 and FLUX files have text encoders to rename"
        if (
            role == "model"
            and not source.rename
            and source.repo.startswith(_UNREAD_ENCODERS)
            and entry.family in RENAMED_FAMILIES
            and "clip_l" not in entry.files
        ):
            yield "model: the engine does not find its text encoders; say rename: text-encoders"


def _settings(entry: Entry, words: Words) -> Iterator[str]:
    defaults, limits, traits = entry.defaults, entry.limits, entry.traits
    width, height = defaults.size
    if defaults.sampler not in words.samplers:
        yield f"sampler {defaults.sampler!r} is unknown"
    if defaults.schedule not in words.schedules:
        yield f"schedule {defaults.schedule!r} is unknown"
    if defaults.schedule == "ays" and not traits.ays:
        yield f"schedule 'ays' is not defined for {entry.family}"
    if width % traits.multiple or height % traits.multiple:
        yield f"size {width}x{height} is not a multiple of {traits.multiple}"
    side = min(limits.max_side or math.inf, traits.max_side or math.inf)
    if max(width, height) > side or width * height > (limits.max_pixels or math.inf):
        yield f"size {width}x{height} is beyond the model's own limits"
    if min(width, height) < 64:
        yield f"size {width}x{height} is below 64 pixels"
    steps = {"steps": defaults.steps, **{f"quality {key}": value for key, value in entry.quality.items()}}
    for name, count in steps.items():
        if count < 1:
            yield f"{name}: {count} is less than 1"
        if count > (limits.max_steps or math.inf):
            yield f"{name}: {count} is more than max_steps, {limits.max_steps}"
        if count < 2 and defaults.schedule in ("gits", "karras", "exponential"):
            yield f"{name}: schedule {defaults.schedule!r} needs at least 2 steps"
    rising = [entry.quality[key] for key in QUALITIES if key in entry.quality]  # type: ignore[index]
    if rising != sorted(rising):
        yield "quality: a higher one has fewer steps"


def _capabilities(entry: Entry) -> Iterator[str]:
    by_reference = "reference-edit" in entry.capabilities
    if by_reference != (entry.edit_mode == "reference"):
        yield f"reference-edit: {entry.family} edits by {entry.edit_mode}, which 'edits' may change"
    if by_reference and entry.family == "z-image":
        yield "reference-edit: the engine would read beyond its memory"
    if by_reference and entry.family.startswith("qwen-image") and "llm_vision" not in entry.files:
        yield "reference-edit: without llm_vision the engine does not see the picture"
    if len(set(entry.capabilities)) != len(entry.capabilities):
        yield "one stands twice"


def _names(entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Names of different models, and quantisations of one, that cannot be told apart."""
    spelt: dict[str, tuple[str, str]] = {}
    mains: dict[tuple[str, Source], str] = {}
    for entry in entries:
        for name in (entry.id, *entry.aliases):
            other, key = spelt.setdefault(name.lower(), (name, entry.id))
            if key != entry.id:
                yield entry.id, f"its name {name!r} differs in capitals alone from {other!r} of {key}"
        for role in ("model", "diffusion"):
            if (source := entry.sources.get(role)) is not None:
                other = mains.setdefault((entry.id, source), entry.name)
                if other != entry.name:
                    yield f"{entry.name}: files.{role}", f"{other} has the same file"


def _contradictions(sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """What two places say of one file, or of one content, and cannot both be true."""
    by_file: dict[tuple[str, str, str], tuple[str, Source]] = {}
    by_hash: dict[str, tuple[str, Source]] = {}
    by_path: dict[Path, tuple[str, Source]] = {}
    for where, source in sources.items():
        other, first = by_file.setdefault((source.repo, source.revision, source.file), (where, source))
        for field in ("bytes", "sha256", "gated"):
            mine, theirs = getattr(source, field), getattr(first, field)
            if None not in (mine, theirs) and mine != theirs:
                yield where, f"{field} of {source.file} is {mine}, but {theirs} in {other}"
        if source.sha256:
            other, first = by_hash.setdefault(source.sha256, (where, source))
            if None not in (source.bytes, first.bytes) and source.bytes != first.bytes:
                yield where, f"sha256 is that of a file of another size, in {other}"
        other, first = by_path.setdefault(source.path, (where, source))
        if first.revision != source.revision:
            yield where, f"{source.file} would lie where another revision of it lies, that of {other}"
