"""From the settings to the catalog and the model that is served by default."""

from __future__ import annotations

from pathlib import Path

from gguf_imagegen.catalog.catalog import MODEL_SUFFIXES, Catalog, entry_of_file, load_catalog
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidRequest, MissingComponent

ROLES: tuple[Role, ...] = (
    "model", "diffusion", "clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd",
    "control_net", "upscaler",
)  # fmt: skip


def choose_models(settings: Settings) -> tuple[Catalog, str]:
    """The catalog and the name of the default model, found complete and readable.

    The name has a quantisation where the settings name one.
    """
    path = Path(settings.model).expanduser()
    if path.suffix in MODEL_SUFFIXES:
        catalog = load_catalog(settings.models_dir, settings.catalog)
        catalog, entry = catalog.with_file(entry_of_file(path, _components(settings.component)))
        return catalog.with_aliases(_aliases(settings.alias)), entry.id
    catalog = catalog_for(settings).with_aliases(_aliases(settings.alias))
    entry = catalog.get(settings.model)
    catalog.checked_files(entry)
    return catalog, entry.name if ":" in settings.model else entry.id


def catalog_for(settings: Settings) -> Catalog:
    """The catalog, in which the model that the settings name by its id has the components that they name."""
    catalog = load_catalog(settings.models_dir, settings.catalog)
    given = _components(settings.component)
    if not given:
        return catalog
    for role, file in given.items():
        if role in ("model", "diffusion"):
            raise InvalidRequest(
                f"component: {role} is the model itself; give that file with --model FILE", param="component"
            )
        if not file.is_file():
            raise MissingComponent(f"component: {role}={file.name}: no such file", param="component")
    files = {role: file.resolve() for role, file in given.items()}
    return catalog.with_components(catalog.get(settings.model).id, files)


def _aliases(words: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for word in words:
        name, _, target = (part.strip() for part in word.partition("="))
        if not name or not target:
            raise InvalidRequest(f"alias: {word!r} is not NAME=ID", param="alias")
        given[name] = target
    return given


def _components(words: tuple[str, ...]) -> dict[Role, Path]:
    given: dict[Role, Path] = {}
    for word in words:
        name, _, file = word.partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or not file:
            raise InvalidRequest(f"component: {word!r} is not ROLE=FILE with a role of {', '.join(ROLES)}")
        given[role] = Path(file).expanduser()
    return given
