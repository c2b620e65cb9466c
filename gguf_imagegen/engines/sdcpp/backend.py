"""stable-diffusion.cpp as a backend: a worker process for each engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msgspec import structs

from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES, VARIATIONS
from gguf_imagegen.engines.sdcpp.probe import probe
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.devices import Device, gpu_names, has_gpu_node, make_devices
from gguf_imagegen.machine.gpus import located
from gguf_imagegen.machine.levels import exports
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.engine import Engine


class SdCpp:
    """Implements `engines.backend.Backend`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def abilities(self) -> Abilities:
        return structs.replace(ABILITIES, variations=exports(VARIATIONS))

    def devices(self) -> Sequence[Device]:
        """As the settings say; where that is `auto` and there are several GPUs, all of them."""
        settings = self._settings
        made = make_devices(_names(settings), settings.cpu_lanes, settings.threads, usable_cores())
        return [replace(device, gpu=device.gpu and located(device.gpu)) for device in made]

    def engine(self, device: Device) -> Engine:
        settings = self._settings
        return EngineProcess(stall_timeout=settings.load_timeout, device=device, kernels=settings.kernels)


def _names(settings: Settings) -> Sequence[str]:
    if settings.devices != ("auto",) or not has_gpu_node():
        return settings.devices
    found, _ = probe()
    gpus = gpu_names(found["devices"]) if found else []
    return gpus if len(gpus) > 1 or (gpus and settings.cpu_lanes > 1) else settings.devices
