"""Model files: good ones are described, broken ones refused in words and at once."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.modelfiles.header import Header, TensorInfo, read_header
from gguf_imagegen.modelfiles.inspect import DIFFUSION, check_complete, component_of, family_of
from gguf_imagegen.modelfiles.traits import Traits, traits_of
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidModelFile, MissingComponent
from tests.broken_files import BROKEN
from tests.weights import write_safetensors

HEADER_BYTES = 20_000


@pytest.fixture(scope="session")
def good(model_dir: Path) -> bytes:
    return (model_dir / "tiny-random.gguf").read_bytes()


def header(*names: str, shapes: dict[str, tuple[int, ...]] | None = None) -> Header:
    """A header with these tensors and nothing behind it."""
    shaped = dict.fromkeys(names, (1, 1)) | (shapes or {})
    tensors = {name: TensorInfo(name, shape, "F16", 0, 2) for name, shape in shaped.items()}
    return Header("made-up.gguf", "gguf", tensors, 2)


def test_a_good_file_is_described(model_dir: Path) -> None:
    """Names, shapes, types and places are those that the `gguf` package reads in the same file."""
    path = model_dir / "tiny-random.gguf"
    found, expected = read_header(path), gguf.GGUFReader(path).tensors
    assert (found.name, found.format, found.size) == ("tiny-random.gguf", "gguf", path.stat().st_size)
    assert {name: (t.shape[::-1], t.type, t.offset, t.nbytes) for name, t in found.tensors.items()} == {
        t.name: (tuple(int(side) for side in t.shape), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in expected
    }
    assert found.parameters == sum(int(t.n_elements) for t in expected)
    assert sum(found.quantization.values()) == pytest.approx(1)
    assert next(iter(found.quantization)) == "Q8_0"


def test_arrays_in_the_metadata_are_passed_over(tmp_path: Path) -> None:
    """Token lists and other arrays stand between the header's start and its tensors; alignment is obeyed."""
    path = tmp_path / "arrays.gguf"
    writer = gguf.GGUFWriter(str(path), "flux")
    writer.add_array("tokens", ["a", "bc", ""])
    writer.add_array("scores", [1.5, 2.5])
    writer.add_float64("real", 2.5)
    writer.add_bool("yes", True)
    writer.add_custom_alignment(64)
    writer.add_tensor("weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_header(path).tensors["weight"]
    assert tensor.shape == (2, 3)
    assert tensor.offset % 64 == 0
    assert np.frombuffer(path.read_bytes(), np.float32, 6, tensor.offset).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_refused(fault: str, good: bytes, tmp_path: Path) -> None:
    """Each named fault is an InvalidModelFile within a second; its words have the bare file name, no path."""
    broken = BROKEN[fault](good)
    assert broken != good
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken)
    start = time.process_time()
    with pytest.raises(InvalidModelFile) as caught:
        entry_of_file(path)
    assert time.process_time() - start < 1
    assert str(caught.value).startswith("broken.gguf: ")
    assert "/" not in str(caught.value)
    advice = "download the file itself" if fault == "text file" else "get the file again"
    assert advice in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255)), min_size=1, max_size=8)
)
def test_flipped_bytes_never_surprise(flips: list[tuple[int, int]], model_dir: Path, good: bytes) -> None:
    """Any bytes changed in the header: described, InvalidModelFile or MissingComponent, within a second."""
    path = model_dir / "flipped" / "tiny-random.gguf"
    if not path.is_file():
        path.parent.mkdir()
        path.write_bytes(good)
        (path.parent / "tiny-random-tae.gguf").write_bytes((model_dir / "tiny-random-tae.gguf").read_bytes())
    head = bytearray(good[:HEADER_BYTES])
    for position, change in flips:
        head[position] ^= change
    with path.open("r+b") as file:
        file.write(head)
    outcome: object
    try:
        outcome = traits_of(entry_of_file(path).family)
    except ImagegenError as exc:
        outcome = exc
    assert isinstance(outcome, Traits | InvalidModelFile | MissingComponent)
    assert str(path.parent) not in str(outcome)


@pytest.mark.parametrize(
    "tensor",
    [
        "img_in.weight", "txt_norm.scale", "final_layer.linear.weight", "double_blocks.0.txt_attn.qkv.bias",
        "single_blocks.0.linear1.weight", "double_blocks.0.img_mlp.gate_proj.weight",
    ],
)  # fmt: skip
def test_a_missing_tensor_is_named(tensor: str, model_dir: Path) -> None:
    """A file that lacks a tensor of its graph, which would end the engine, is refused."""
    whole, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    check_complete("ovis-image", {"model": whole, "taesd": tae})
    kept = {name: info for name, info in whole.tensors.items() if name != DIFFUSION + tensor}
    assert len(kept) == len(whole.tensors) - 1
    damaged = Header(whole.name, "gguf", kept, whole.size)
    family = family_of(damaged)
    assert family is not None
    with pytest.raises(MissingComponent):
        check_complete(family, {"model": damaged, "taesd": tae})


def test_a_missing_block_is_named() -> None:
    """Blocks are numbered without a gap; the words say which one is missing."""
    damaged = header(
        *(f"{DIFFUSION}double_blocks.{i}.x" for i in (0, 1, 3)), "text_encoders.t5xxl.x",
        "text_encoders.clip_l.x", "vae.x",
    )  # fmt: skip
    with pytest.raises(MissingComponent, match=r"double_blocks\.2 is missing"):
        check_complete("flux", {"model": damaged})


SD1_IN = (320, 4, 3, 3)
UNET = f"{DIFFUSION}input_blocks.0.0.weight"
CONTEXT = f"{DIFFUSION}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FLUX = f"{DIFFUSION}double_blocks.0.img_attn.qkv.weight"
IMG_IN = f"{DIFFUSION}img_in.weight"


def unet(channels: int, context: int) -> dict[str, tuple[int, ...]]:
    return {UNET: (320, channels, 3, 3), CONTEXT: (320, context)}


def flux(channels: int) -> dict[str, tuple[int, ...]]:
    return {FLUX: (9216, 3072), IMG_IN: (3072, channels)}


FAMILIES: list[tuple[str, dict[str, tuple[int, ...]]]] = [
    ("sd1", unet(4, 768)),
    ("sd1-inpaint", unet(9, 768)),
    ("sd1-pix2pix", unet(8, 768)),
    ("sd2", unet(4, 1024)),
    ("sd2-inpaint", unet(9, 1024)),
    ("sdxl", unet(4, 2048)),
    ("sdxl", unet(4, 768) | {"conditioner.embedders.1.model.ln_final.weight": (1,)}),
    ("sdxl-inpaint", unet(9, 2048)),
    ("sdxl-pix2pix", unet(8, 2048)),
    ("sd1", {"unet.conv_in.weight": SD1_IN, "unet.down_blocks.0.attentions.0.attn2.to_k.weight": (320, 768)}),
    ("svd", unet(8, 1024) | {f"{DIFFUSION}input_blocks.8.0.time_mixer.mix_factor": (1,)}),
    ("sd3", {f"{DIFFUSION}joint_blocks.0.x_block.attn.qkv.weight": (1, 1)}),
    ("flux", flux(64)),
    ("flux-fill", flux(384)),
    ("flux-controls", flux(128)),
    ("flex-2", flux(196)),
    ("flux2", flux(128) | {f"{DIFFUSION}double_stream_modulation_img.lin.weight": (1, 1)}),
    ("chroma", flux(64) | {f"{DIFFUSION}distilled_guidance_layer.in_proj.weight": (1, 1)}),
    ("chroma-radiance", flux(64) | {f"{DIFFUSION}nerf_final_layer_conv.conv.weight": (1, 1, 3, 3)}),
    ("ovis-image", flux(64) | {f"{DIFFUSION}double_blocks.0.img_mlp.gate_proj.weight": (1, 1)}),
    ("qwen-image", {f"{DIFFUSION}transformer_blocks.0.img_mod.1.weight": (1, 1)}),
    ("z-image", {f"{DIFFUSION}cap_embedder.0.weight": (1,)}),
    ("wan", {f"{DIFFUSION}blocks.0.cross_attn.norm_k.weight": (1,)}),
]


@pytest.mark.parametrize(("family", "shapes"), FAMILIES, ids=lambda value: str(value)[:40])
def test_families(family: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A family is told from names and shapes as `ModelLoader::get_sd_version` of sd.cpp tells it."""
    assert family_of(header(shapes=shapes)) == family


BARE = [(f, s) for f, s in FAMILIES if all(n.startswith(DIFFUSION) for n in s) and f != "wan"]


@pytest.mark.parametrize(("family", "shapes"), BARE, ids=lambda value: str(value)[:40])
def test_families_without_prefix(family: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of the diffusion model alone leaves the prefix out, and is the same family."""
    bare = {name.removeprefix(DIFFUSION): shape for name, shape in shapes.items()}
    assert family_of(header(shapes=bare)) == family
    assert component_of(header(shapes=bare)) == "diffusion"


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("model", "first_stage_model.decoder.conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("taesd", "decoder.layers.3.conv.0.weight"),
        ("clip_l", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("clip_g", "text_model.encoder.layers.31.mlp.fc1.weight"),
        ("clip_vision", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("t5xxl", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("t5xxl", "enc.blk.0.attn_q.weight"),
        ("llm", "blk.0.attn_q.weight"),
        ("llm_vision", "v.blk.0.attn_q.weight"),
        ("control_net", "input_hint_block.0.weight"),
        ("upscaler", "body.0.rdb1.conv1.weight"),
        ("lora", "lora_unet_down.lora_down.weight"),
        ("unknown", "something.else"),
    ],
)
def test_components(component: str, name: str) -> None:
    """Each kind of component file is known by a tensor of its own; a model holds more than diffusion."""
    names = [name] if component != "model" else [name, UNET]
    assert component_of(header(*names)) == component
    assert (family_of(header(*names)) is None) == (component != "model")


NEEDS: dict[str, tuple[Role, ...]] = {
    "sd1": ("clip_l", "vae"),
    "sdxl-inpaint": ("clip_l", "clip_g", "vae"),
    "sd3": ("clip_l", "clip_g", "vae"),
    "flux": ("clip_l", "t5xxl", "vae"),
    "flux2": ("llm", "vae"),
    "chroma": ("t5xxl", "vae"),
    "qwen-image": ("llm", "vae"),
    "z-image": ("llm", "vae"),
}


@pytest.mark.parametrize("family", NEEDS)
def test_a_set_is_whole_or_the_missing_part_is_named(family: str) -> None:
    """Each component that a family needs is missed by name, with the flag that gives it."""
    part = header("x")
    files: dict[Role, Header] = {"diffusion": part, **dict.fromkeys(NEEDS[family], part)}
    check_complete(family, files)
    for role in NEEDS[family]:
        without = {name: file for name, file in files.items() if name != role}
        with pytest.raises(MissingComponent, match=f"--component {role}=FILE"):
            check_complete(family, without)


def safetensors(content: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_a_good_safetensors_file(tmp_path: Path) -> None:
    """Shape, type and place of each tensor; the `__metadata__` is none."""
    path = tmp_path / "good.safetensors"
    data = safetensors({"__metadata__": {"format": "pt"}, **tensor()}, bytes(24))
    path.write_bytes(data)
    found = read_header(path)
    assert found.format == "safetensors"
    assert found.tensors == {"w": TensorInfo("w", (2, 3), "F32", len(data) - 24, 24)}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\1\2\3", safetensors({}), safetensors([]), safetensors(tensor(), bytes(23)),
        safetensors(tensor(), length=1 << 60), safetensors(tensor(), length=0), safetensors(b"{" * 100),
        safetensors(b"[" * 100_000), safetensors(b'{"w": 5}'), safetensors({"w": {}}),
        safetensors(tensor("F99"), bytes(24)), safetensors(tensor(5), bytes(24)),
        safetensors(tensor(shape=[-2, -3]), bytes(24)), safetensors(tensor(shape=[2.0, 3]), bytes(24)),
        safetensors(tensor(shape=[True, 6]), bytes(24)), safetensors(tensor(shape="23"), bytes(24)),
        safetensors(tensor(shape=[1] * 9, offsets=[0, 4]), bytes(24)),
        safetensors(tensor(offsets=[24, 0]), bytes(24)), safetensors(tensor(offsets=[0, 24, 48]), bytes(24)),
        safetensors(tensor(offsets=[0, 1 << 80]), bytes(24)), safetensors(tensor(["F32"]), bytes(24)),
        safetensors(b"\xff\xfe" * 50),
    ],
    ids=lambda data: repr(data[:40]),
)  # fmt: skip
def test_broken_safetensors_files(data: bytes, tmp_path: Path) -> None:
    """Every lie in the JSON, and every cut, is an InvalidModelFile with the bare file name."""
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidModelFile, match=r"^broken\.safetensors: [^/]*$"):
        read_header(path)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A folder or nothing at all under the name: the same error, not an OSError."""
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(InvalidModelFile, match="cannot be read"):
            read_header(path)


WEIGHT = "double_blocks.0.img_attn.qkv.weight"


@pytest.mark.parametrize(
    ("words", "extra", "weights"),
    [
        ("scaled FP8", {f"{WEIGHT[:-6]}scale_weight": "F32", "scaled_fp8": "F8_E4M3"}, "F8_E4M3"),
        ("scaled FP8", {f"{WEIGHT}_scale": "F32"}, "F8_E4M3"),
        ("scaled FP8", {f"{WEIGHT}_scale": "F32", f"{WEIGHT[:-6]}comfy_quant": "U8"}, "F8_E5M2"),
        ("INT8 with scales", {f"{WEIGHT}_scale": "F32"}, "I8"),
        ("MXFP8", {f"{WEIGHT}_scale": "F8_E8M0"}, "F8_E4M3"),
        ("NVFP4", {f"{WEIGHT}_scale": "F8_E4M3", f"{WEIGHT}_scale_2": "F32"}, "U8"),
        ("NF4", {f"{WEIGHT}.absmax": "F32", f"{WEIGHT}.quant_state.bitsandbytes__nf4": "U8"}, "U8"),
        ("a quantisation of ComfyUI", {f"{WEIGHT[:-6]}comfy_quant": "U8"}, "U8"),
        ("F4", {}, "F4"),
    ],
)
def test_formats_that_the_engine_cannot_read(
    tmp_path: Path, words: str, extra: dict[str, str], weights: str
) -> None:
    """Said by name, with what to take instead: never that the file is damaged."""
    types = {WEIGHT: weights, **extra}
    path = write_safetensors(tmp_path / "m.safetensors", {n: np.zeros(4, np.uint8) for n in types}, types)
    with pytest.raises(InvalidModelFile) as caught:
        read_header(path)
    assert f"m.safetensors: its weights are {words}" in str(caught.value)
    assert "take a GGUF quantisation, or the model in FP16 or BF16" in str(caught.value)


def test_plain_fp8_is_read(tmp_path: Path) -> None:
    """Numbers that need no scale are a type like any other; the suffix may be spelt otherwise."""
    for name in ("m.safetensors", "m.sft", "M.SAFETENSORS"):
        path = write_safetensors(tmp_path / name, {WEIGHT: np.zeros(4, np.uint8)}, {WEIGHT: "F8_E4M3"})
        assert read_header(path).tensors[WEIGHT].type == "F8_E4M3"


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """With the way to join the parts; a model that was split into one is whole."""
    for count in (1, 2):
        writer = gguf.GGUFWriter(str(tmp_path / f"{count}.gguf"), "flux")
        writer.add_uint16("split.count", count)
        writer.add_tensor(WEIGHT, np.zeros((2, 2), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert read_header(tmp_path / "1.gguf").tensors
    with pytest.raises(InvalidModelFile, match=r"one of 2 parts .* gguf-imagegen convert FIRST-PART"):
        read_header(tmp_path / "2.gguf")


@pytest.mark.parametrize(
    "name",
    ["x.lora_B.weight", "x.lora.up.weight", "x.hada_w1_a", "x.lokr_w1", "x.lokr_w2_b", "x.diff", "x.diff_b",
     "x.lora_linear_layer.up.weight"],
)  # fmt: skip
def test_every_kind_of_lora_is_known_as_one(name: str) -> None:
    """LoHa, LoKr and plain differences are used as LoRAs are."""
    assert component_of(header(name)) == "lora"
