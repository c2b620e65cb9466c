"""From the settings to the catalog and the model that is served by default."""

from __future__ import annotations

from pathlib import Path

from gguf_imagegen.catalog.catalog import MODEL_SUFFIXES, Catalog, entry_of_file, load_catalog
from gguf_imagegen.engine.protocol import Role
from gguf_imagegen.errors import InvalidRequest
from gguf_imagegen.settings import Settings

ROLES: tuple[Role, ...] = (
    "model", "diffusion", "clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd",
    "control_net", "upscaler",
)  # fmt: skip


def choose_models(settings: Settings) -> tuple[Catalog, str]:
    """The catalog and the id of the default model, found complete and readable."""
    catalog = load_catalog(settings.models_dir, settings.catalog)
    path = Path(settings.model).expanduser()
    if path.suffix in MODEL_SUFFIXES:
        catalog, entry = catalog.with_file(entry_of_file(path, _components(settings.component)))
        return catalog, entry.id
    entry = catalog.get(settings.model)
    catalog.checked_files(entry)
    return catalog, entry.id


def _components(words: tuple[str, ...]) -> dict[Role, Path]:
    given: dict[Role, Path] = {}
    for word in words:
        name, _, file = word.partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or not file:
            raise InvalidRequest(f"component: {word!r} is not ROLE=FILE with a role of {', '.join(ROLES)}")
        given[role] = Path(file).expanduser()
    return given
