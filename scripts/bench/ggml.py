"""ggml as an engine's library exports it: tensors, graphs and their computation, through ctypes.

The binding's library has all of ggml within, so that a graph of ours runs on the very kernels of that build.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TYPES: Final = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
"""`enum ggml_type`."""
PREC_F32: Final = 10
GRAPH_NODES: Final = 2048
Tensor = ctypes.c_void_p
_RETURNS: Final = {
    "ggml_init": Tensor,
    "ggml_new_graph_custom": Tensor,
    "ggml_backend_cpu_init": Tensor,
    "ggml_backend_alloc_ctx_tensors": Tensor,
    "ggml_gallocr_new": Tensor,
    "ggml_gallocr_alloc_graph": ctypes.c_bool,
    "ggml_backend_get_default_buffer_type": Tensor,
    "ggml_quantize_chunk": ctypes.c_size_t,
    "ggml_nbytes": ctypes.c_size_t,
    "ggml_element_size": ctypes.c_size_t,
}


class _Parameters(ctypes.Structure):
    """`ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """One backend of the CPU with so many threads; `op` calls any function that makes a tensor."""

    def __init__(self, library: Path, threads: int) -> None:
        self._lib = ctypes.CDLL(str(library))
        for name, returned in _RETURNS.items():
            getattr(self._lib, name).restype = returned
        self._backend = Tensor(self._lib.ggml_backend_cpu_init())
        self._lib.ggml_backend_cpu_set_n_threads(self._backend, ctypes.c_int(threads))
        self._constants, self._graph, self._shapes = self._context(), self._context(), self._context()
        self._made: Tensor | None = None

    def _context(self) -> Tensor:
        return Tensor(self._lib.ggml_init(_Parameters(64 << 20, None, True)))

    def constant(self, kind: str, *shape: int) -> Tensor:
        """A tensor whose values are `put`, innermost dimension first."""
        return self._new(self._constants, kind, shape)

    def constant_like(self, *shape: int) -> Tensor:
        """A tensor that is never filled: its shape says what an operation is to make."""
        return self._new(self._shapes, "F32", shape)

    def _new(self, context: Tensor, kind: str, shape: Iterable[int]) -> Tensor:
        sizes = [ctypes.c_int64(size) for size in (*shape, 1, 1, 1)][:4]
        function = self._lib.ggml_new_tensor_4d
        function.restype = ctypes.c_void_p
        return Tensor(function(context, ctypes.c_int(TYPES[kind]), *sizes))

    def op(self, name: str, *arguments: Any) -> Tensor:
        """`ggml_NAME`; whole numbers among the arguments are int64, `ctypes` values what they say."""
        function = getattr(self._lib, f"ggml_{name}")
        function.restype = ctypes.c_void_p
        words = (ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments)
        return Tensor(function(self._graph, *words))

    def precise(self, product: Tensor) -> Tensor:
        self._lib.ggml_mul_mat_set_prec(product, ctypes.c_int(PREC_F32))
        return product

    def allocate(self) -> None:
        """Memory of all constants."""
        if not self._lib.ggml_backend_alloc_ctx_tensors(self._constants, self._backend):
            raise MemoryError("no memory for the weights")

    def put(self, tensor: Tensor, values: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(values)
        pointer, size = data.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(data.nbytes)
        self._lib.ggml_backend_tensor_set(tensor, pointer, ctypes.c_size_t(0), size)

    def quantised(self, values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.uint8]:
        """A matrix in ggml's own bytes, by ggml's own quantisation."""
        data = np.ascontiguousarray(values)
        made = np.empty(data.nbytes, np.uint8)  # no type takes more than F32
        rows, columns = (ctypes.c_int64(size) for size in data.shape)
        size = self._lib.ggml_quantize_chunk(
            ctypes.c_int(TYPES[kind]), data.ctypes.data_as(ctypes.c_void_p),
            made.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), rows, columns, None,
        )  # fmt: skip
        return made[:size]

    def build(self, result: Tensor) -> None:
        """The graph that ends in this tensor, its memory taken once as sd.cpp does."""
        self._made = Tensor(
            self._lib.ggml_new_graph_custom(self._graph, ctypes.c_size_t(GRAPH_NODES), ctypes.c_bool(False))
        )
        self._lib.ggml_build_forward_expand(self._made, result)
        allocator = Tensor(
            self._lib.ggml_gallocr_new(Tensor(self._lib.ggml_backend_get_default_buffer_type(self._backend)))
        )
        if not self._lib.ggml_gallocr_alloc_graph(allocator, self._made):
            raise MemoryError("no memory for the graph")

    def compute(self) -> None:
        status = self._lib.ggml_backend_graph_compute(self._backend, self._made)
        if status:
            raise RuntimeError(f"ggml could not compute the graph: status {status}")

    def get(self, tensor: Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        values = np.empty(shape, np.float32)
        pointer, size = values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(values.nbytes)
        self._lib.ggml_backend_tensor_get(tensor, pointer, ctypes.c_size_t(0), size)
        return values
