"""From the settings to the catalog and the model that is served by default."""

from __future__ import annotations

import logging
from pathlib import Path

from gguf_imagegen.catalog.address import Address, address_of
from gguf_imagegen.catalog.catalog import MODEL_SUFFIXES, Catalog, entry_of_file, load_catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.tree import Tell, entry_of_folder, models_in
from gguf_imagegen.machine.devices import NOWHERE
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidRequest, MissingComponent

log = logging.getLogger(__name__)
ROLES: tuple[Role, ...] = (
    "model", "diffusion", "clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd",
    "control_net", "upscaler",
)  # fmt: skip


def choose_models(settings: Settings) -> tuple[Catalog, str]:
    """The catalog and the name of the default model, found complete and readable if it is loaded here.

    The name has a quantisation where the settings name one.
    """
    path = Path(settings.model).expanduser()
    if names_file(settings.model):
        catalog = known_models(settings, _not_used)
        catalog, entry = catalog.with_file(entry_of_file(path, given_components(settings.component)))
        return _served(catalog, entry, settings), entry.id
    if names_folder(settings):
        entry = entry_of_folder(path)
        catalog = known_models(settings, _not_used).with_entries([entry])
        return _served(catalog, entry, settings), entry.id
    catalog = catalog_for(settings, _not_used)
    entry = catalog.get(settings.model)
    if settings.devices != NOWHERE or catalog.on_disk(entry):
        catalog.checked_files(entry)
    return _served(catalog, entry, settings), entry.name if _says_quant(settings.model) else entry.id


def _not_used(words: str) -> None:
    log.info("not used of --models-from: %s", words)


def known_models(settings: Settings, tell: Tell = lambda words: None) -> Catalog:
    """The catalog, and the models in the folder of another program that the settings name.

    `tell` hears of each file of that folder that cannot be used, and why.
    """
    catalog = load_catalog(settings.models_dir, settings.catalog)
    if settings.models_from is None:
        return catalog
    if not settings.models_from.is_dir():
        raise InvalidRequest(f"models_from: {settings.models_from.name} is no folder", param="models_from")
    taken = {name for entry in catalog.entries for name in (entry.id, *entry.aliases)}
    return catalog.with_entries(models_in(settings.models_from, taken, tell))


def names_file(model: str) -> bool:
    """Whether `--model` means a file of this machine: no id, and no address of a hub."""
    path = Path(model).expanduser()
    if len(path.parts) > 1 and path.is_file():  # whatever its suffix: the content decides
        return True
    return path.suffix.lower() in MODEL_SUFFIXES and (path.is_file() or address_of(model) is None)


def names_folder(settings: Settings) -> bool:
    """Whether `--model` means a folder; what the catalog knows by this name goes before."""
    folder = Path(settings.model).expanduser().is_dir()
    return folder and not load_catalog(settings.models_dir, settings.catalog).knows(settings.model)


def _says_quant(model: str) -> bool:
    address = address_of(model)
    return bool(address.quant) if address else ":" in model


def _served(catalog: Catalog, entry: Entry, settings: Settings) -> Catalog:
    """The catalog that knows the default model by the names it is served under, with defaults as set."""
    names = settings.served_model_name
    other = next((each.id for each in catalog.entries if each.id in names and each.id != entry.id), None)
    if other is not None:
        raise InvalidRequest(
            f"served_model_name: {other!r} is another model of the catalog; choose a different name",
            param="served_model_name",
        )
    catalog = catalog.with_aliases(entry.id, names) if names else catalog
    catalog = _with_aliases(catalog, settings.alias)
    said = {"size": settings.default_size, "steps": settings.default_steps}
    return catalog.with_defaults(entry.id, {name: value for name, value in said.items() if value})


def served_name(settings: Settings, catalog: Catalog, default_model: str) -> str:
    """What answers call the default model: `--served-model-name`, else its name as `--model` says it."""
    if settings.served_model_name:
        return settings.served_model_name[0]
    entry, said = catalog.get(default_model), settings.model.partition(":")[0]
    unsaid = settings.model == type(settings).model_fields["model"].default
    return said if said in entry.aliases and not unsaid else entry.id


def catalog_for(settings: Settings, tell: Tell = lambda words: None) -> Catalog:
    """The catalog, in which the model that the settings name by its id has the components that they name."""
    catalog = known_models(settings, tell)
    given = given_parts(settings.component)
    if not given:
        return catalog
    entry, files = catalog.get(settings.model), dict[Role, Path | None]()
    for role, part in given.items():
        if isinstance(part, Address):
            _require_pulled_with(entry, role, part)
        else:
            files[role] = part and part.resolve()
    return catalog.with_components(entry.id, files)


def _require_pulled_with(entry: Entry, role: Role, address: Address) -> None:
    """What an address gives was kept with the model when that was pulled."""
    source = entry.sources.get(role)
    files = [piece.file for piece in source.pieces] if source else []
    if source is None or source.repo != address.repo or (address.file and address.file not in files):
        raise InvalidRequest(
            f"component: {entry.id} was not pulled with {role}={address.name}; do so with: gguf-imagegen pull"
            f" {next(iter(entry.aliases), entry.id)} --component {role}={address.name}",
            param="component",
        )


def _with_aliases(catalog: Catalog, words: tuple[str, ...]) -> Catalog:
    """The catalog with the further names of `--alias`; ModelNotFound if one of them leads nowhere."""
    for word in words:
        name, _, target = (part.strip() for part in word.partition("="))
        if not name or not target:
            raise InvalidRequest(f"alias: {word!r} is not NAME=ID", param="alias")
        entry = catalog.get(target)
        if any(each.id == name != entry.id for each in catalog.entries):
            raise InvalidRequest(f"alias: {name!r} is another model of the catalog", param="alias")
        catalog = catalog.with_aliases(entry.id, (name,))
    return catalog


NONE = "none"
"""In the place of a component's file: leave it out."""


def given_components(words: tuple[str, ...]) -> dict[Role, Path | None]:
    """The files of `--component`, by role; None for one to leave out."""
    given: dict[Role, Path | None] = {}
    for role, said in _said(words).items():
        part = _part(said)
        if isinstance(part, Address):
            raise InvalidRequest(
                f"component: {role}={said[:60]} is an address, and the model is a file; name a file as well",
                param="component",
            )
        given[role] = part
    return given


def given_parts(words: tuple[str, ...]) -> dict[Role, Path | Address | None]:
    """The parts that `--component` adds to a model: files that are there, and addresses of a hub."""
    given = {role: _part(said) for role, said in _said(words).items()}
    for role, part in given.items():
        if role in ("model", "diffusion"):
            raise InvalidRequest(
                f"component: {role} is the model itself; give that file with --model FILE", param="component"
            )
        if isinstance(part, Path) and not part.is_file():
            raise MissingComponent(f"component: {role}={part.name}: no such file", param="component")
    return given


def _said(words: tuple[str, ...]) -> dict[Role, str]:
    said: dict[Role, str] = {}
    for word in words:
        name, _, file = word.partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or not file:
            raise InvalidRequest(f"component: {word!r} is not ROLE=FILE with a role of {', '.join(ROLES)}")
        said[role] = file
    return said


def _part(said: str) -> Path | Address | None:
    """A file that is there goes before an address; `none` is none of both."""
    path = Path(said).expanduser()
    address = None if path.is_file() else address_of(said)
    return None if said == NONE else address or path
