"""What a node has to offer, asked of it before it gets lanes."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from gguf_imagegen import __version__
from gguf_imagegen.engines.backend import OURS, Backend, named_backend
from gguf_imagegen.machine import memory
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.pool.identity import Machine, cpu_name, this_machine
from gguf_imagegen.pool.ray.messages import WIRE, Offer, OfferedDevice
from gguf_imagegen.pool.ray.node_settings import node_name, pulls_models
from gguf_imagegen.settings import Settings


def offer() -> bytes:
    """The `Offer` of this node as JSON. Runs there; its name and what it returns never change."""
    return msgspec.json.encode(offer_of(Settings()))


def offer_of(settings: Settings) -> Offer:
    """What this machine offers with these settings. Raises UnknownBackend."""
    devices = backend_here(settings).devices()
    machine = this_machine(settings.kernels) if settings.backend == OURS.name else None
    return Offer(
        wire=WIRE,
        version=__version__,
        name=node_name(),
        build=_build(settings, machine),
        devices=[_offered(device, machine) for device in devices],
        pulls=pulls_models(),
        cpu=cpu_name(),
    )


def backend_here(settings: Settings) -> Backend:
    return named_backend(settings.backend)(settings)


def _offered(device: Device, machine: Machine | None) -> OfferedDevice:
    """What is left to the engine is offered as the CPU, if that is all it has."""
    if machine is not None and (device.kind, machine.backend) == ("auto", "CPU"):
        device = replace(device, name="cpu", gpu=None)
    whole = memory.whole(gpu=device.gpu)
    return OfferedDevice(device.name, device.threads, device.gpu, whole.ram, whole.vram)


def _build(settings: Settings, machine: Machine | None) -> str:
    """Names the engine so far as it decides pixels: its library, the kernels, and the kind of processor."""
    if settings.backend != OURS.name:
        return settings.backend
    return f"{machine.library[:12]} {machine.backend} {machine.kernels}".strip() if machine else ""


def read_offer(data: bytes) -> Offer:
    """Raises ValueError, in words, for an offer that this server cannot take."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.wire == WIRE:
            return msgspec.json.decode(data, type=Offer)
    except msgspec.DecodeError as exc:
        raise ValueError(f"its offer cannot be read: {exc}") from None
    raise ValueError(
        f"{head.name} runs gguf-imagegen {head.version} and speaks version {head.wire} of the cluster's"
        f" protocol, this server ({__version__}) version {WIRE}: install the same release on both"
    )


class _Head(msgspec.Struct, frozen=True):
    """What every version of an offer has."""

    wire: int
    version: str
    name: str
