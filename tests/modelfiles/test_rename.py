"""Renamed text encoders: the copy differs in names alone, and the engine then heeds the prompt."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.modelfiles.header import Header, TensorInfo, read_header
from gguf_imagegen.modelfiles.inspect import DIFFUSION, check_complete, missing_parts
from gguf_imagegen.modelfiles.rename import PIECE, needs_renaming, new_names, rename_text_encoders
from gguf_imagegen.vocabulary.engine import LoadSpec
from gguf_imagegen.vocabulary.errors import InvalidModelFile, MissingComponent, WorkerCrashed
from gguf_imagegen.vocabulary.events import Made
from tests.engines.test_process import SPEC

Array = npt.NDArray[np.float32]
Q4_0 = gguf.GGMLQuantizationType.Q4_0
HIDDEN = 128
CLIP = "cond_stage_model.transformer.text_model."


def flux(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """The smallest FLUX that sd.cpp takes: one head, one block of each kind; `vector_in` reads CLIP-L."""

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Array]]:
        weight = rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)
        yield f"{DIFFUSION}{name}.weight", weight
        yield f"{DIFFUSION}{name}.bias", rng.standard_normal(outputs, np.float32)

    sizes = {"img_in": (64, HIDDEN), "txt_in": (4096, HIDDEN), "final_layer.linear": (HIDDEN, 64)}
    for name, inputs in (("time_in", 256), ("vector_in", 768)):
        sizes |= {f"{name}.in_layer": (inputs, HIDDEN), f"{name}.out_layer": (HIDDEN, HIDDEN)}
    sizes["final_layer.adaLN_modulation.1"] = (HIDDEN, 2 * HIDDEN)
    for stream in ("double_blocks.0.img", "double_blocks.0.txt"):
        sizes |= {f"{stream}_mod.lin": (HIDDEN, 6 * HIDDEN), f"{stream}_attn.qkv": (HIDDEN, 3 * HIDDEN)}
        sizes |= {f"{stream}_attn.proj": (HIDDEN, HIDDEN)}
        sizes |= {f"{stream}_mlp.0": (HIDDEN, 4 * HIDDEN), f"{stream}_mlp.2": (4 * HIDDEN, HIDDEN)}
    sizes["single_blocks.0.modulation.lin"] = (HIDDEN, 3 * HIDDEN)
    sizes |= {
        "single_blocks.0.linear1": (HIDDEN, 7 * HIDDEN),
        "single_blocks.0.linear2": (5 * HIDDEN, HIDDEN),
    }
    for name, (inputs, outputs) in sizes.items():
        yield from linear(name, inputs, outputs)
    for norm in ("double_blocks.0.img_attn.norm", "double_blocks.0.txt_attn.norm", "single_blocks.0.norm"):
        for part in ("query_norm", "key_norm"):
            yield f"{DIFFUSION}{norm}.{part}.scale", np.ones(HIDDEN, np.float32)


def add_clip(writer: gguf.GGUFWriter, rng: np.random.Generator, prefix: str) -> None:
    """CLIP-L has fixed sizes: 123 million random weights of 4 bits, made directly as blocks (70 MB)."""

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.empty((rows, columns // 32, 18), np.uint8)
        blocks[..., :2] = np.array([1 / 64], np.float16).view(np.uint8)
        blocks[..., 2:] = rng.integers(0, 256, (rows, columns // 32, 16), np.uint8)
        writer.add_tensor(prefix + name, blocks.reshape(rows, -1), raw_dtype=Q4_0)

    def vectors(name: str, size: int, *, weight: bool = False) -> None:
        writer.add_tensor(f"{prefix}{name}.bias", np.zeros(size, np.float32))
        if weight:
            writer.add_tensor(f"{prefix}{name}.weight", np.ones(size, np.float32))

    matrix("embeddings.token_embedding.weight", 49408, 768)
    writer.add_tensor(
        f"{prefix}embeddings.position_embedding.weight", rng.standard_normal((77, 768), np.float32) / 8
    )
    vectors("final_layer_norm", 768, weight=True)
    for layer in (f"encoder.layers.{number}" for number in range(12)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            matrix(f"{layer}.self_attn.{part}.weight", 768, 768)
            vectors(f"{layer}.self_attn.{part}", 768)
        matrix(f"{layer}.mlp.fc1.weight", 3072, 768)
        matrix(f"{layer}.mlp.fc2.weight", 768, 3072)
        vectors(f"{layer}.mlp.fc1", 3072)
        vectors(f"{layer}.mlp.fc2", 768)
        for part in ("layer_norm1", "layer_norm2"):
            vectors(f"{layer}.{part}", 768, weight=True)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ignore(done: int, total: int) -> None:
    """For who does not want to know how far it is."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX that runs, whose CLIP-L is named as in the files made for llama-box."""
    path = tmp_path_factory.mktemp("rename") / "flux.gguf"
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "flux")
    for name, weight in flux(rng):
        writer.add_tensor(name, weight)
    add_clip(writer, rng, CLIP)
    finish(writer)
    return path


@pytest.fixture(scope="module")
def renamed(original: Path) -> Path:
    target = original.with_name("flux.text-encoders.gguf")
    rename_text_encoders(original, target, ignore)
    return target


async def pictures(path: Path, taesd: Path, *prompts: str) -> list[bytes]:
    """One picture for each prompt, same seed, made by a real worker."""
    engine = EngineProcess(stall_timeout=60)
    try:
        async for _ in engine.load(LoadSpec("flux", {"model": path, "taesd": taesd}, threads=1)):
            pass
        return [
            event.artifact.data
            for prompt in prompts
            async for event in engine.run(replace(SPEC, prompt=prompt, width=64, height=64, steps=2))
            if isinstance(event, Made)
        ]
    finally:
        await engine.close()


async def test_the_engine_reads_renamed_encoders(renamed: Path, model_dir: Path) -> None:
    """Two prompts give two pictures after the renaming, and a prompt gives the same one twice."""
    taesd = model_dir / "tiny-random-tae.gguf"
    red, blue, again = await pictures(renamed, taesd, "a red circle", "a blue house", "a red circle")
    assert red != blue
    assert red == again


async def test_the_engine_does_not_survive_the_old_names(original: Path, model_dir: Path) -> None:
    """Before the renaming sd.cpp finds no encoder and dies of the first prompt; so the set is refused."""
    taesd = model_dir / "tiny-random-tae.gguf"
    with pytest.raises(MissingComponent, match="CLIP-L"):
        check_complete("flux", {"model": read_header(original), "taesd": read_header(taesd)})
    with pytest.raises(WorkerCrashed):
        await pictures(original, taesd, "a red circle")


def test_only_names_differ(original: Path, renamed: Path) -> None:
    """Metadata, types, shapes, order and every byte of the data are those of the original."""
    old, new = gguf.GGUFReader(original), gguf.GGUFReader(renamed)
    assert {key: field.parts[-1].tobytes() for key, field in old.fields.items()} == {
        key: field.parts[-1].tobytes() for key, field in new.fields.items()
    }
    assert [t.name for t in new.tensors] == [
        t.name.replace("cond_stage_model.", "text_encoders.clip_l.") for t in old.tensors
    ]
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert (before.tensor_type, before.shape.tolist()) == (after.tensor_type, after.shape.tolist())
        assert np.array_equal(before.data, after.data)
    assert renamed.read_bytes()[new.data_offset :] == original.read_bytes()[old.data_offset :]


def test_a_renamed_file_needs_nothing_more(renamed: Path) -> None:
    """Only what was never in the file is missed afterwards, and a second renaming is refused."""
    header = read_header(renamed)
    assert not needs_renaming(header)
    assert [role for _, role in missing_parts("flux", {"model": header})] == ["t5xxl", "vae"]
    with pytest.raises(InvalidModelFile, match="nothing to rename"):
        rename_text_encoders(renamed, renamed.with_name("twice.gguf"), ignore)


def test_progress_goes_up_to_the_size_in_bounded_steps(original: Path, tmp_path: Path) -> None:
    """`on_progress` is told of every piece, none larger than the buffer; nothing else is left behind."""
    told: list[tuple[int, int]] = []
    target = tmp_path / "copy.gguf"
    rename_text_encoders(original, target, lambda done, total: told.append((done, total)))
    done = [0, *(step for step, _ in told)]
    assert all(0 <= after - before <= PIECE for before, after in pairwise(done))
    assert {total for _, total in told} == {done[-1]} == {target.stat().st_size}
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_renaming_leaves_nothing(original: Path, tmp_path: Path) -> None:
    """A caller that stops it in the middle finds neither a target nor a partial file."""

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rename_text_encoders(original, tmp_path / "copy.gguf", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_without_naming_it(original: Path, tmp_path: Path) -> None:
    """What the system refuses is one line with the bare file name."""
    with pytest.raises(InvalidModelFile, match=r"^copy\.gguf: it cannot be written [^/]*$"):
        rename_text_encoders(original, tmp_path / "absent" / "copy.gguf", ignore)


def test_arrays_and_alignment_are_kept(tmp_path: Path) -> None:
    """A file with token lists and an alignment of its own comes through, wherever its header ends."""
    for length in range(1, 90, 11):
        path, target = tmp_path / "whole.gguf", tmp_path / "renamed.gguf"
        writer = gguf.GGUFWriter(str(path), "x" * length)
        writer.add_array("tokens", ["a", "bc", ""])
        writer.add_custom_alignment(64)
        weights = {name: np.full((2, 32), number, np.float32) for number, name in enumerate([FLUX, TOKENS])}
        for name, weight in weights.items():
            writer.add_tensor(name, weight)
        finish(writer)
        rename_text_encoders(path, target, ignore)
        new = gguf.GGUFReader(target)
        assert new.data_offset % 64 == 0
        assert new.fields["tokens"].contents() == ["a", "bc", ""]
        assert [t.data.tolist() for t in new.tensors] == [weight.tolist() for weight in weights.values()]


FLUX = f"{DIFFUSION}double_blocks.0.img_attn.qkv.weight"
SD3 = f"{DIFFUSION}joint_blocks.0.x_block.attn.qkv.weight"
TOKENS = f"{CLIP}embeddings.token_embedding.weight"
G_TOKENS = TOKENS.replace("model.", "model.1.", 1)
SHARED = "cond_stage_model.{}.transformer.shared.weight"


def header(*names: str) -> Header:
    return Header("made-up.gguf", "gguf", {name: TensorInfo(name, (1,), "F32", 0, 4) for name in names}, 4)


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        (SD3, TOKENS, "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight"),
        (SD3, G_TOKENS, "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding.weight"),
        (SD3, SHARED.format(2), "text_encoders.t5xxl.transformer.shared.weight"),
        (FLUX, TOKENS, "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight"),
        (FLUX, SHARED.format(1), "text_encoders.t5xxl.transformer.shared.weight"),
        (FLUX, "cond_stage_model.1.token_embd.weight", "text_encoders.t5xxl.transformer.token_embd.weight"),
    ],
)
def test_names(family: str, old: str, new: str) -> None:
    """Each encoder gets the name by which its family's class in conditioner.hpp looks for it."""
    vae = "first_stage_model.decoder.conv_in.weight"
    assert new_names(header(family, old, vae)) == {family: family, old: new, vae: vae}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([SD3], "nothing to rename in this sd3 model"),
        ([f"{DIFFUSION}input_blocks.0.0.weight", TOKENS], "nothing to rename in this sd1 model"),
        ([TOKENS], "without a diffusion model"),
        ([FLUX, SHARED.format(2)], "text encoder 2 is one that its family does not have"),
        ([FLUX, "cond_stage_model.model.ln_final.weight"], "clip_l has names that the engine cannot read"),
        ([FLUX, TOKENS, "text_encoders.clip_l." + TOKENS.partition(".")[2]], "under both names"),
        ([FLUX, TOKENS, "cond_stage_model." + "x" * 110], "becomes too long"),
    ],
)
def test_what_cannot_be_renamed_is_refused(names: list[str], words: str) -> None:
    """A file that needs nothing, or would still not be read, is refused with a sentence."""
    with pytest.raises(InvalidModelFile, match=words):
        new_names(header(*names))


def test_safetensors_are_refused(tmp_path: Path) -> None:
    """Only GGUF is rewritten."""
    content = json.dumps({FLUX: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "whole.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + b"x")
    with pytest.raises(InvalidModelFile, match="only GGUF files"):
        rename_text_encoders(path, tmp_path / "copy.gguf", ignore)
