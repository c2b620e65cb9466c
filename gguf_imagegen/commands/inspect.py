"""What models are, told without loading them: all of the catalog, or one by its files, here or on the web."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.catalog.default_model import known_models, names_file
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.quants import Quant, State, Survey, best_of
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.modelfiles.header import Header, read_header
from gguf_imagegen.modelfiles.inspect import component_of, family_of, missing_parts, unfit_words
from gguf_imagegen.modelfiles.rename import needs_renaming, renamed
from gguf_imagegen.modelfiles.traits import FAMILIES
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import ModelNotDownloaded


@dataclass(frozen=True)
class FileReport:
    """One file. `quantization` is the share of the bytes by tensor type, largest first."""

    name: str
    remote: bool
    format: str
    family: str | None
    component: str
    size: int
    tensors: int
    parameters: int
    quantization: Mapping[str, float]


@dataclass(frozen=True)
class Inspection:
    """The files of one target, what else is needed to make pictures with them, and what to know."""

    files: tuple[FileReport, ...]
    needs: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ListedModel:
    """A model of the catalog; `name` is the quantisation whose `on_disk`, `state`, `bytes` and `fits`
    these are: what `pull ID` and a request for ID mean."""

    id: str
    aliases: tuple[str, ...]
    description: str
    family: str
    licence: str
    size: str
    steps: int
    unsupported: str
    name: str
    on_disk: bool
    state: State
    bytes: int | None
    fits: bool | None
    quants: tuple[Quant, ...]


def list_models(settings: Settings) -> list[ListedModel]:
    """All of the catalog, in its order; nothing is asked of the hub."""
    catalog = known_models(settings)
    survey = Survey(catalog, settings)
    return [_listed(entry, tuple(survey.quants(entry.id))) for entry in catalog.entries]


def _listed(entry: Entry, quants: tuple[Quant, ...]) -> ListedModel:
    best = best_of(quants)
    return ListedModel(
        entry.id,
        entry.aliases,
        entry.description,
        entry.family,
        entry.licence,
        "x".join(map(str, entry.defaults.size)),
        entry.defaults.steps,
        entry.unsupported,
        best.name,
        best.on_disk,
        best.state,
        best.bytes,
        best.fits,
        quants,
    )


def inspect_target(target: str, settings: Settings) -> Inspection:
    """Inspect FILE, ID[:QUANT] or a web address; of what is not here, only the headers are fetched."""
    entry = _entry_of(target, settings)
    if entry is not None and entry.unsupported:
        return Inspection((), (), (f"{entry.id} cannot be run: {entry.unsupported}",))
    headers = dict(_headers(target, entry, settings))
    reports = tuple(_report(header, remote) for header, remote in headers.values())
    files = {role: header for role, (header, _) in headers.items()}
    family = next((report.family for report in reports if report.family), None)
    missing = missing_parts(family, files) if family and family in FAMILIES else []
    needs = tuple(f"{words} (--component {role}=FILE)" for words, role in missing)
    return Inspection(reports, needs, tuple(_notes(family, files)))


def _entry_of(target: str, settings: Settings) -> Entry | None:
    """The model of the catalog, None for a file or a web address."""
    path = Path(target).expanduser()
    if _on_the_web(target) or names_file(target) or (path.exists() and not path.is_dir()):
        return None
    return load_catalog(settings.models_dir, settings.catalog).get(target)


def _on_the_web(target: str) -> bool:
    return target.lower().startswith(("http://", "https://"))


def _headers(
    target: str, entry: Entry | None, settings: Settings
) -> Iterator[tuple[Role, tuple[Header, bool]]]:
    """Headers by role, and whether each came from the web."""
    if entry is None:
        remote = _on_the_web(target)
        header = _remote(target) if remote else read_header(Path(target).expanduser())
        yield _role(header), (header, remote)
        return
    for role, file in Catalog([entry], settings.models_dir).paths(entry).items():
        if file.is_file():
            yield role, (read_header(file), False)
        elif role in entry.sources:
            from gguf_imagegen.download.hubs import Hubs
            from gguf_imagegen.download.remote import hub_header

            source = entry.sources[role]
            header = hub_header(Hubs().of(source), source)
            yield role, (renamed(header) if source.rename else header, True)
        else:
            raise ModelNotDownloaded(f"{file.name} is not on this machine", param="model")


def _remote(url: str) -> Header:
    from gguf_imagegen.download.remote import remote_header

    return remote_header(url)


def _role(header: Header) -> Role:
    """What a file would be used as; a LoRA or an unknown one stands alone, so that any role will do."""
    return cast(Role, component_of(header))


def _report(header: Header, remote: bool) -> FileReport:
    return FileReport(
        header.name,
        remote,
        header.format,
        family_of(header),
        component_of(header),
        header.size,
        len(header.tensors),
        header.parameters,
        {kind: round(share, 4) for kind, share in header.quantization.items()},
    )


def _notes(family: str | None, files: Mapping[Role, Header]) -> Iterator[str]:
    for header in files.values():
        if words := unfit_words(header):
            yield f"this server cannot make images with {header.name}: {words}"
            continue
        if needs_renaming(header):
            yield (
                f"the engine does not find the text encoders of {header.name} under their names;"
                " the pull of a catalog entry with rename: text-encoders mends that"
            )
        if component_of(header) == "unknown":
            yield f"{header.name}: unknown file type"


def as_json(found: Inspection | Sequence[ListedModel]) -> str:
    """For programs."""
    plain = asdict(found) if isinstance(found, Inspection) else [asdict(model) for model in found]
    return json.dumps(plain, indent=2)


def models_table(models: Sequence[ListedModel]) -> Table:
    """For people: ids are whole at any width, so that they can be copied."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("id", "on disk", "size", "fits"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "size" else "left")
    table.add_column("description")
    for model in models:
        cells = (
            model.id,
            _state_words(model),
            size_words(model.bytes) if model.bytes else "",
            {True: "yes", False: "no", None: ""}[model.fits],
            " ".join(model.description.split()) + " It cannot be run." * bool(model.unsupported),
        )
        table.add_row(*map(Text, cells))
    return table


def _state_words(model: ListedModel) -> str:
    """`partial` and `corrupt` are told also of a quantisation that is not the one to take."""
    if model.state in ("ready", "corrupt", "partial"):
        return {"ready": "yes"}.get(model.state, model.state)
    begun = [
        f"{each.state}: {each.name.partition(':')[2]}" for each in model.quants if each.state != "absent"
    ]
    return ", ".join(begun) or "no"


def as_table(inspection: Inspection) -> RenderableType:
    """For people: one block for each file, then what is needed."""
    blocks: list[RenderableType] = []
    for file in inspection.files:
        table = Table(show_header=False, title=Text(file.name), title_justify="left")
        mix = [f"{kind} {share:.0%}" for kind, share in file.quantization.items()]
        rows = {
            "component": file.component,
            "family": file.family or "-",
            "format": f"{file.format}, on the web" if file.remote else file.format,
            "size": f"{size_words(file.size)} ({file.size:,} bytes)",
            "tensors": f"{file.tensors:,}",
            "parameters": _count_words(file.parameters),
            "types": ", ".join(mix),
        }
        for name, value in rows.items():
            table.add_row(name, Text(value))
        blocks.append(table)
    blocks += [Text(f"needs {need}") for need in inspection.needs]
    blocks += [Text(f"note: {note}") for note in inspection.notes]
    return Group(*blocks)


def _count_words(count: float) -> str:
    for unit in ("", " thousand", " million"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} billion"
