"""Files whose header can be read but which would end the engine, or deceive it, are refused in words."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.modelfiles.header import Header, TensorInfo, read_header
from gguf_imagegen.modelfiles.inspect import DIFFUSION, check_complete, family_of
from gguf_imagegen.vocabulary.errors import InvalidModelFile, MissingComponent
from scripts.bench.synthetic import write_synthetic_sd1

EMBEDDING = "text_encoders.llm.model.embed_tokens.weight"
TXT_IN = f"{DIFFUSION}txt_in.weight"


def changed(header: Header, shapes: dict[str, tuple[int, ...]], drop: str | None = None) -> Header:
    """The same header with some shapes replaced and the tensors that contain `drop` left out."""
    tensors = {
        name: TensorInfo(name, shapes.get(name, info.shape), info.type, info.offset, info.nbytes)
        for name, info in header.tensors.items()
        if drop is None or drop not in name
    }
    return Header(header.name, "gguf", tensors, header.size)


@pytest.mark.parametrize("drop", ["key_norm.scale", "query_norm", "img_in.bias", EMBEDDING, "llm.model.norm"])
def test_every_tensor_that_the_engine_reads_is_required(drop: str, model_dir: Path) -> None:
    """Without a key norm sd.cpp divides by zero; the others it would refuse later and less clearly."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    with pytest.raises(MissingComponent, match="the file is damaged"):
        check_complete("ovis-image", {"model": changed(whole, {}, drop), "taesd": tae})


@pytest.mark.parametrize("head", [64, 256])
def test_heads_of_another_size_are_refused(head: int, model_dir: Path) -> None:
    """The rotary axes fix it: sd.cpp aborts on 64 and divides by zero on 256."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    norms: dict[str, tuple[int, ...]] = {n: (head,) for n in whole.tensors if n.endswith("key_norm.scale")}
    with pytest.raises(InvalidModelFile, match="size 128"):
        check_complete("ovis-image", {"model": changed(whole, norms), "taesd": tae})


@pytest.mark.parametrize("kind", ["Q8_1", "I8", "I32", "F64"])
def test_matrices_of_types_that_hold_no_weights_are_refused(kind: str, model_dir: Path) -> None:
    """One flipped bit turns Q8_0 into a type that ggml cannot multiply by: the engine would crash."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    tensors = whole.tensors | {TXT_IN: TensorInfo(TXT_IN, (128, 64), kind, 0, 2)}
    with pytest.raises(InvalidModelFile, match=f"has type {kind}"):
        check_complete("ovis-image", {"model": Header("x.gguf", "gguf", tensors, whole.size), "taesd": tae})


def test_encoder_and_transformer_have_the_same_width(model_dir: Path) -> None:
    """A transformer for wider text than its encoder makes trips an assert at the first image."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    with pytest.raises(InvalidModelFile, match="gives 64 numbers, its transformer wants 128"):
        check_complete("ovis-image", {"model": changed(whole, {TXT_IN: (128, 128)}), "taesd": tae})


def test_a_model_of_another_family_is_named(model_dir: Path) -> None:
    """What the catalog says of a file has to agree with its tensors."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    with pytest.raises(InvalidModelFile, match="ovis-image model, not qwen-image"):
        check_complete("qwen-image", {"model": whole, "taesd": tae, "llm": whole})


def test_the_refiner_is_not_taken_for_another_model() -> None:
    """sd.cpp cannot load SDXL's refiner, whose attention is 1280 wide."""
    names = {
        f"{DIFFUSION}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
        "conditioner.embedders.0.model.ln_final.weight": (1280,),
    }
    tensors = {name: TensorInfo(name, shape, "F16", 0, 2) for name, shape in names.items()}
    assert family_of(Header("refiner.safetensors", "safetensors", tensors, 2)) == "sdxl-refiner"


def safetensors(path: Path, names: list[str], shape: list[int]) -> Path:
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2]}
    text = json.dumps(dict.fromkeys(names, entry)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(2))
    return path


def test_impossible_block_numbers_are_refused(tmp_path: Path) -> None:
    """A number of thousands of digits is a damaged file, not a crash of ours."""
    names = [
        f"{DIFFUSION}double_blocks.{'9' * 5000}.x", "text_encoders.clip_l.x",
        "text_encoders.t5xxl.x", "vae.x",
    ]  # fmt: skip
    with pytest.raises(InvalidModelFile, match="impossible number"):
        check_complete("flux", {"model": read_header(safetensors(tmp_path / "m.safetensors", names, [1]))})


def test_tensors_without_axes_are_described(tmp_path: Path) -> None:
    """A scalar where a matrix belongs does not surprise the detection of the family."""
    names = [f"{DIFFUSION}img_in.weight", f"{DIFFUSION}double_blocks.0.x"]
    assert family_of(read_header(safetensors(tmp_path / "m.safetensors", names, []))) == "flux"


def test_huge_lists_and_texts_are_refused_at_once(tmp_path: Path) -> None:
    """Reading takes no more time than a second, however much a file really holds."""
    listing = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 600_000)
    lists = tmp_path / "lists.gguf"
    lists.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + (listing + bytes(8 * 600_000)) * 3)
    text = b'{"a": "' + b"x" * (9 << 20) + b'"}'
    long = tmp_path / "long.safetensors"
    long.write_bytes(struct.pack("<Q", len(text)) + text)
    for path in (lists, long):
        start = time.process_time()
        with pytest.raises(InvalidModelFile):
            read_header(path)
        assert time.process_time() - start < 1


def test_a_whole_stable_diffusion_is_complete(tmp_path: Path) -> None:
    """All 1,130 names of a real checkpoint: parts numbered 0 and 2 inside a block are no gap."""
    entry = entry_of_file(write_synthetic_sd1(tmp_path / "sd15.safetensors"))
    assert (entry.family, entry.capabilities[0]) == ("sd1", "text-to-image")
