"""How the native library was built, and what it can compute on: asked of ggml, whose symbols it exports."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import stable_diffusion_cpp.stable_diffusion_cpp as low

DEVICE_KINDS: Final = ("cpu", "gpu", "igpu", "accelerator")


@dataclass(frozen=True)
class Device:
    """A backend device of ggml; `kind` is one of `DEVICE_KINDS`."""

    name: str
    description: str
    kind: str


@dataclass(frozen=True)
class Build:
    """How the native library was built, and what it can compute on; `backend` is what it will choose.

    `features` are what the CPU part was compiled with, as ggml names them; LLAMAFILE is tinyBLAS. `kernels`
    are those of ours (scripts/engine) that it uses here: None if it was built without, "" if they are off or
    made for other CPUs.
    """

    version: str
    commit: str
    features: tuple[str, ...]
    devices: tuple[Device, ...]
    backend: str
    kernels: str | None


def describe() -> Build:
    """For the doctor: a GPU build that did not find its toolkit is silently a CPU build."""
    found = tuple(devices())
    return Build(
        version=low.sd_version().decode(),
        commit=low.sd_commit().decode(),
        features=tuple(_features()),
        devices=found,
        backend=default_backend(found),
        kernels=kernels(),
    )


def kernels() -> str | None:
    """As `Build.kernels`. The library looks at its environment once, so that this stays as it is."""
    if not hasattr(low._lib, "ggml_packed_kernels"):
        return None
    low._lib.ggml_packed_kernels.restype = ctypes.c_char_p
    return str(low._lib.ggml_packed_kernels().decode())


def devices() -> Iterable[Device]:
    lib = low._lib
    if not hasattr(lib, "ggml_backend_dev_count"):
        return
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes, lib.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for function in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    for number in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(number)
        yield Device(
            name=lib.ggml_backend_dev_name(device).decode(),
            description=lib.ggml_backend_dev_description(device).decode(),
            kind=DEVICE_KINDS[lib.ggml_backend_dev_type(device)],
        )


class _Feature(ctypes.Structure):
    """`ggml_backend_feature`."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def _features() -> Iterable[str]:
    """What `ggml_backend_cpu_get_features` tells, found by its name as ggml means it to be."""
    lib = low._lib
    if not hasattr(lib, "ggml_backend_reg_by_name"):
        return
    lib.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
    lib.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    lib.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    register = lib.ggml_backend_reg_by_name(b"CPU")
    address = register and lib.ggml_backend_reg_get_proc_address(register, b"ggml_backend_get_features")
    if not address:
        return
    features = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(register)
    for number in itertools.count():
        if not features[number].name:
            return
        if features[number].value != b"0":
            yield features[number].name.decode()


def default_backend(found: tuple[Device, ...]) -> str:
    """As util.cpp chooses: the first GPU, else the first integrated one, else the CPU."""
    for kind in ("gpu", "igpu", "cpu"):
        for device in found:
            if device.kind == kind:
                return device.name
    return "CPU"
