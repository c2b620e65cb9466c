"""The ControlNet that a request names: a file of the control folder, loaded together with the model.

The server of a cluster may have the ControlNet and not the model; then the machine that has both looks
whether the model has all that it adds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.control_nets import control_family, control_fault, is_whole_unet
from gguf_imagegen.modelfiles.embeddings import base_family
from gguf_imagegen.modelfiles.inspect import inspect_file
from gguf_imagegen.planning.addons import named_file, names_in
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidModelFile, InvalidRequest

PREPROCESSORS = ("none", "canny")


@dataclass(frozen=True)
class ListedControlNet:
    """A file of the folder; `fault` says why no model can use it, in words that follow its name."""

    name: str
    family: str = ""
    fault: str = ""


def listed_control_nets(folder: Path | None) -> list[ListedControlNet]:
    """Everything in the folder, by name. Reads headers: call it in a thread."""
    return [_listed(name, folder) for name in names_in(folder, "control_net")]


def _listed(name: str, folder: Path | None) -> ListedControlNet:
    try:
        header = inspect_file(named_file(name, folder, "control_net"))
    except ImagegenError as exc:
        return ListedControlNet(name, fault=f"cannot be used: {exc}")
    return ListedControlNet(name, control_family(header) or "", control_fault(header))


def with_control_net(request: ImageRequest, entry: Entry, catalog: Catalog, settings: Settings) -> Entry:
    """The model with the ControlNet that the request names, if any, which makes it another loaded one.

    Reads headers: call it in a thread. Raises MissingAddon for a name that is not there, InvalidRequest
    without an image, InvalidModelFile for a ControlNet that cannot be loaded with this model.
    """
    name = request.control_model
    if name is None:
        return entry
    if request.control is None:
        raise InvalidRequest(f"control: the ControlNet {name[:100]!r} needs an image", param="control")
    path = named_file(name, settings.control_dir, "control_net")
    header = inspect_file(path)
    if fault := control_fault(header):
        raise InvalidModelFile(f"control_model: {path.name} {fault}", param="control_model")
    family = control_family(header)
    if family != base_family(entry.family):
        raise InvalidModelFile(
            f"control_model: {path.name} is for {family} models, and {entry.id} is {entry.family}",
            param="control_model",
        )
    catalog.require_within_reach(entry)
    if catalog.on_disk(entry):
        require_whole(entry, catalog.paths(entry))
    return entry.model_copy(update={"files": {**entry.files, "control_net": path.absolute()}})


def require_whole(entry: Entry, paths: Mapping[Role, Path]) -> None:
    """Raise InvalidModelFile for a model to which no ControlNet can add."""
    unet = next(path for role, path in paths.items() if role in ("model", "diffusion"))
    if not is_whole_unet(inspect_file(unet)):
        raise InvalidModelFile(
            f"control_model: {entry.id} lacks blocks to which a ControlNet adds", param="control_model"
        )
