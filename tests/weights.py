"""Small real files beside the tiny model: an upscaler and LoRAs, whose effect can be told beforehand."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter

Array = npt.NDArray[np.float32]
FEATURES, GROWTH = 64, 32  # of every ESRGAN that sd.cpp loads (`esrgan.hpp`)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    types: Mapping[str, str] | None = None,
    metadata: object = None,
) -> Path:
    """The tensors as they are; `types` are the names of those that numpy does not have, such as F8_E4M3."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        kind = (types or {}).get(name) or f"{tensor.dtype.kind.upper()}{8 * tensor.dtype.itemsize}"
        place = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": place}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def product(
    name: str, rows: int, columns: int, rank: int = 4, ends: str = "lora_B lora_A"
) -> dict[str, Array]:
    """The tensors of a LoRA for one matrix, their names ending in the two `ends` and `.weight`."""
    rng = np.random.default_rng(0)
    up, down = (f"{name}.{end}.weight" for end in ends.split())
    return {
        up: rng.standard_normal((rows, rank), np.float32),
        down: rng.standard_normal((rank, columns), np.float32),
    }


def write_upscaler(path: Path, factor: int = 4) -> Path:
    """An ESRGAN of one block that repeats each pixel `factor` (2 or 4) times each way."""
    writer = GGUFWriter(str(path), "esrgan")
    for name, weight in _esrgan(factor):
        writer.add_tensor(name, weight.astype(np.float16) if weight.ndim == 4 else weight)
    return _finish(writer, path)


def write_lora(
    path: Path, *, target: str = "img_in", rows: int = 128, columns: int = 64, seed: int = 0
) -> Path:
    """A LoRA of rank 1 on one matrix of the tiny model's transformer, or on one that it does not have."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(str(path), "lora")
    for name, shape in (("lora_A", (1, columns)), ("lora_B", (rows, 1))):
        weight = rng.standard_normal(shape, np.float32)
        writer.add_tensor(f"model.diffusion_model.{target}.{name}.weight", weight)
    return _finish(writer, path)


def _finish(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _esrgan(factor: int) -> Iterator[tuple[str, Array]]:
    colours = np.eye(3, dtype=np.float32)
    yield from _conv("conv_first", FEATURES, 3, colours)
    for dense in (1, 2, 3):
        for number in (1, 2, 3, 4, 5):
            outputs = FEATURES if number == 5 else GROWTH
            inputs = FEATURES + (number - 1) * GROWTH
            yield from _conv(f"body.0.rdb{dense}.conv{number}", outputs, inputs)
    yield from _conv("conv_body", FEATURES, FEATURES)
    for name in ("conv_up1", "conv_up2")[: factor // 2]:
        yield from _conv(name, FEATURES, FEATURES, colours)
    yield from _conv("conv_hr", FEATURES, FEATURES, colours)
    yield from _conv("conv_last", 3, FEATURES, colours)


def _conv(name: str, outputs: int, inputs: int, matrix: Array | None = None) -> Iterator[tuple[str, Array]]:
    """A 3x3 convolution that applies `matrix` to the first channels of each pixel, or gives nothing."""
    kernel = np.zeros((outputs, inputs, 3, 3), np.float32)
    if matrix is not None:
        kernel[: len(matrix), : matrix.shape[1], 1, 1] = matrix
    yield f"{name}.weight", kernel
    yield f"{name}.bias", np.zeros(outputs, np.float32)


def split_gguf(whole: Path, folder: Path, tensors: int) -> list[Path]:
    """The parts of a GGUF file as gguf-split of llama.cpp writes them, each with so many of its tensors."""
    writer = GGUFWriter(str(folder / whole.name), "flux", split_max_tensors=tensors)
    for tensor in GGUFReader(whole).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer, whole)
    return sorted(folder.glob(f"{whole.stem}-*-of-*.gguf"))
