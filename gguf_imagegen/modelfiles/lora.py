"""Which tensors of a LoRA change a model, told from both headers before the engine sees the file.

sd.cpp finds what to change by name, passes over in silence what it does not find, and ends its process on
shapes and types that it did not expect. These are the rules of `MultiLoraAdapter` in its lora.hpp.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile

from gguf_imagegen.modelfiles.engine_names import DECODERS, DIFFUSION, model_name, role_prefix
from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.modelfiles.lora_names import Spelling, spellings
from gguf_imagegen.modelfiles.weight_types import QUANTIZED
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile

Parts = Mapping[str, TensorInfo]

_PLAIN = frozenset({"F32", "F16", "BF16"})
_FLOATS = {"gguf": _PLAIN, "safetensors": _PLAIN | {"F64", "F8_E4M3", "F8_E5M2"}}
_NUMBERS = {"gguf": frozenset({"I32"}), "safetensors": frozenset({"I32", "I64"})}
_PASSED_OVER = "U8"
_EMBEDDINGS = (
    "token_embedding.weight", "position_embedding.weight", "embed_tokens.weight", "shared.weight",
    "relative_attention_bias.weight",
)  # fmt: skip
"""Tensors in which the engine looks rows up, past every LoRA."""
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOHA_CORES = ("hada_t1", "hada_t2")
_STRIDED = (".op.weight",)  # the convolutions that halve a U-Net's picture
_CLIP_G = "cond_stage_model.1.transformer.text_model.encoder.layers."
_CLIP_G_FUSED = (
    ("q_proj.weight", "in_proj.weight"), ("k_proj.weight", "in_proj.weight.1"),
    ("v_proj.weight", "in_proj.weight.2"),
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """`fitting` of a LoRA's `total` tensors have an effect; `stranger` is one that has none, or empty.

    It is so once the tensors are called as `renamed` says, by their names in the file.
    """

    fitting: int
    total: int
    stranger: str
    renamed: Mapping[str, str]


class _Misfit(Exception):
    """What the engine could not do with the file, in words that follow its name."""


def fit(lora: Header, files: Mapping[Role, Header], family: str, model: str) -> Fit:
    """Compare a LoRA with the files of the model that is called `model`.

    InvalidModelFile says why, if nothing of it would have an effect, or if it would end the engine.
    """
    fitting: set[str] = set()
    faults: list[str] = []
    targets = _targets(files, family)
    names = spellings(lora, family, targets)
    try:
        for layer, pieces in _layers(lora, targets, names):
            try:
                fitting.update(tensor.name for tensor in _effective(layer, pieces, lora.format))
            except _Misfit as exc:
                faults.append(str(exc))
    except _Misfit as exc:
        raise _refusal(lora, str(exc)) from None
    stranger = next((name for name in lora.tensors if name not in fitting), "")
    share = f"{len(fitting)} of {len(lora.tensors)} tensors fit {model}"
    if faults:
        raise _refusal(lora, f"{faults[0]}; {share}")
    if not fitting:
        raise _refusal(
            lora,
            f"was made for another model, or has names that the engine does not know: {share} (the first is"
            f" {_short(stranger)})",
        )
    renamed = {name: spelling.file for name, spelling in names.items() if spelling.file != name}
    return Fit(len(fitting), len(lora.tensors), stranger, renamed)


def _refusal(lora: Header, words: str) -> InvalidModelFile:
    return InvalidModelFile(f"lora: {lora.name} {words}", param="lora")


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:50]}…{name[-49:]}")


# -- by name ------------------------------------------------------------------------------------------


def _targets(files: Mapping[Role, Header], family: str) -> dict[str, TensorInfo]:
    """The weights and biases that a LoRA may change, by their names in the engine."""
    targets = {}
    for role, header in files.items():
        prefix = role_prefix(role, family)
        if prefix is None:
            continue
        for name, tensor in header.tensors.items():
            full = model_name(name if name.startswith(prefix) else prefix + name, family)
            if full.endswith((".weight", ".bias")) and not full.endswith(_EMBEDDINGS):
                targets[full] = replace(tensor, name=full)
    return targets


def _layers(
    lora: Header, targets: Mapping[str, TensorInfo], names: Mapping[str, Spelling]
) -> Iterator[tuple[TensorInfo, list[Parts]]]:
    """Each layer that the file means to change, with what it holds for the layer's pieces.

    The pieces are rows of a fused matrix, in their order: `qkv.weight.1` changes K.
    """
    parts = _parts(lora, names, fused=f"{_CLIP_G}0.self_attn.in_proj.weight" in targets)
    for name in dict.fromkeys(key if key in targets else key.rpartition(".")[0] for key in parts):
        if name in targets:
            keys = takewhile(parts.__contains__, chain([name], (f"{name}.{number}" for number in count(1))))
            yield targets[name], [parts[key] for key in keys]


def _parts(lora: Header, names: Mapping[str, Spelling], *, fused: bool) -> dict[str, dict[str, TensorInfo]]:
    """The file's tensors by the name of what they change, and then by part: `lora_down`, `alpha`, …"""
    readable = _FLOATS[lora.format] | _NUMBERS[lora.format] | QUANTIZED | {_PASSED_OVER}
    parts: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, tensor in lora.tensors.items():
        if tensor.type not in readable:
            raise _Misfit(f"has {_short(name)} in {tensor.type}, which the engine does not read")
        if not math.prod(tensor.shape):
            raise _Misfit(f"is damaged: {_short(name)} is empty")
        key, _, part = names[name].engine.rpartition(".")
        if fused and key.startswith(_CLIP_G):
            for old, new in _CLIP_G_FUSED:
                key = key.replace(old, new)
        if key.startswith(DECODERS):
            raise _Misfit(f"changes the image decoder ({_short(name)}), which is not supported")
        if part in parts[key]:
            raise _Misfit(f"says the same twice, in {_short(parts[key][part].name)} and {_short(name)}")
        if tensor.type != _PASSED_OVER:
            parts[key][part] = tensor
    return parts


# -- by shape and type --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """What is added to a layer or to a piece of it: its shape, and the tensors that make it up."""

    shape: tuple[int, ...]
    tensors: tuple[TensorInfo, ...]
    scales: tuple[TensorInfo, ...] = ()
    quantizable: bool = False


def _effective(layer: TensorInfo, pieces: list[Parts], format: str) -> Iterator[TensorInfo]:
    """The tensors that change the layer; _Misfit if the engine would stumble over one."""
    sums = _leading(_difference, pieces) or _leading(_loha, pieces)
    products = _leading(_product, pieces)
    if sums:
        _check_sums(layer, sums)
    if products:
        _check_products(layer, products)
    for change in sums + products:
        quantized = QUANTIZED if change.quantizable and len(layer.shape) == 2 else frozenset()
        _check_types(change.tensors, _FLOATS[format] | quantized)
        _check_types(change.scales, _FLOATS[format] | _NUMBERS[format])
        yield from change.tensors + change.scales


def _leading(change_of: Callable[[Parts], _Change | None], pieces: list[Parts]) -> list[_Change]:
    """The changes of the pieces up to the first that has none, where the engine stops to look."""
    return [change for change in takewhile(bool, map(change_of, pieces)) if change]


def _difference(piece: Parts) -> _Change | None:
    if "diff" not in piece:
        return None
    return _Change(piece["diff"].shape or (1,), (piece["diff"],))


def _loha(piece: Parts) -> _Change | None:
    """The product, element by element, of two products of matrices."""
    if not all(part in piece for part in _LOHA):
        return None
    if any(part in piece for part in _LOHA_CORES):
        raise _Misfit(f"is a LoHa in Tucker form ({_short(piece[_LOHA[0]].name)}), which is not supported")
    halves = [_multiplied(piece[f"hada_w{n}_a"], piece[f"hada_w{n}_b"], flat=True) for n in (1, 2)]
    if halves[0] != halves[1]:
        raise _Misfit(f"is damaged: the halves of {_short(piece[_LOHA[0]].name)} have different shapes")
    return _Change(halves[0], tuple(piece[part] for part in _LOHA), _scales(piece, "alpha"))


def _product(piece: Parts) -> _Change | None:
    """What is multiplied with a layer's input, and added to its output."""
    if "lokr_w1" in piece or "lokr_w1_a" in piece:
        return _lokr(piece)
    if not ("lora_up" in piece and "lora_down" in piece):
        return None
    matrices = tuple(piece[part] for part in ("lora_up", "lora_mid", "lora_down") if part in piece)
    scale = "scale" if "scale" in piece else "alpha"
    return _Change(_multiplied(*matrices), matrices, _scales(piece, scale), quantizable=True)


def _lokr(piece: Parts) -> _Change:
    """The Kronecker product of two matrices."""
    one, two = piece.get("lokr_w1"), piece.get("lokr_w2")
    if one is None or two is None:
        name = next(iter(piece.values())).name
        raise _Misfit(f"is a LoKr of split matrices ({_short(name)}), which the engine cannot apply")
    if len(one.shape) != 2 or len(two.shape) < 2:
        raise _Misfit(f"is damaged: {_short(one.name)} is no matrix")
    shape = (one.shape[0] * two.shape[0], one.shape[1] * two.shape[1], *two.shape[2:])
    return _Change(shape, (one, two), _scales(piece, "alpha"))


def _scales(piece: Parts, part: str) -> tuple[TensorInfo, ...]:
    return (piece[part],) if part in piece else ()


def _multiplied(*matrices: TensorInfo, flat: bool = False) -> tuple[int, ...]:
    """The shape of a product of matrices, or of convolutions of which one has a kernel larger than 1x1.

    With `flat` kernels belong to the columns.
    """
    shapes = [(m.shape[0], math.prod(m.shape[1:])) if flat and m.shape else m.shape for m in matrices]
    if any(len(shape) not in (2, 4) or len(shape) != len(shapes[0]) for shape in shapes):
        raise _Misfit(f"is damaged: {_short(matrices[0].name)} and its counterpart are no two matrices")
    for name, left, right in zip((m.name for m in matrices), shapes, shapes[1:], strict=False):
        if left[1] != right[0]:
            raise _Misfit(
                f"is damaged: the ranks of {_short(name)} contradict each other, {left[1]} and {right[0]}"
            )
    kernels = [shape[2:] for shape in shapes]
    wide = kernels.pop(1)  # of the core, or without one of what reads the input
    if any(math.prod(kernel) != 1 for kernel in kernels):
        raise _Misfit(f"has kernels in {_short(matrices[0].name)} that the engine cannot apply")
    return (shapes[0][0], shapes[-1][1], *wide)


def _check_sums(layer: TensorInfo, changes: list[_Change]) -> None:
    """Their elements are as many as the layer's; of a matrix the last rows may be missing."""
    rows = sum(change.shape[0] for change in changes)
    single = len(changes) > 1 or rows < layer.shape[0]  # a piece of one row is taken for a vector
    for change in changes:
        columns = math.prod(change.shape[1:])
        if (
            columns != math.prod(layer.shape[1:])
            or rows > layer.shape[0]
            or (single and change.shape[0] == 1)
        ):
            raise _other_model(layer, change)
    if rows < layer.shape[0] and len(layer.shape) != 2:
        raise _other_model(layer, changes[0])
    if layer.type in QUANTIZED:
        raise _Misfit(
            f"adds whole matrices ({_short(changes[0].tensors[0].name)}), which the engine does with"
            f" unquantised weights only; {_plain_name(layer)} is {layer.type}, take the model in FP16 or BF16"
        )


def _check_products(layer: TensorInfo, changes: list[_Change]) -> None:
    """They have the layer's inputs, and together its outputs."""
    rows = sum(change.shape[0] for change in changes)
    wrong = next((change for change in changes if change.shape[1:] != layer.shape[1:]), None)
    if wrong or rows > layer.shape[0] or len(layer.shape) not in (2, 4):
        raise _other_model(layer, wrong or changes[0])
    if rows < layer.shape[0]:
        raise _Misfit(
            f"changes {rows} of the {layer.shape[0]} rows of {_plain_name(layer)}, which the engine cannot do"
            f" ({_short(changes[0].tensors[0].name)})"
        )
    if layer.name.endswith(_STRIDED) and any(len(change.tensors) == 3 for change in changes):
        raise _Misfit(f"has a core for {_plain_name(layer)}, which the engine cannot apply")


def _other_model(layer: TensorInfo, change: _Change) -> _Misfit:
    theirs, ours = ("x".join(map(str, shape)) for shape in (change.shape, layer.shape))
    return _Misfit(
        f"was made for another model: {_short(change.tensors[0].name)} changes {theirs} numbers,"
        f" {_plain_name(layer)} has {ours}"
    )


def _plain_name(layer: TensorInfo) -> str:
    return layer.name.removeprefix(DIFFUSION)


def _check_types(tensors: tuple[TensorInfo, ...], allowed: frozenset[str]) -> None:
    for tensor in tensors:
        if tensor.type not in allowed:
            raise _Misfit(f"has {_short(tensor.name)} in {tensor.type}, which the engine cannot apply")
