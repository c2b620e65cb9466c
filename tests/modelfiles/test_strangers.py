"""Files that people have beside models: each is said by its name, and never to be damaged when it is not."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import component_of, family_of, unfit_words
from gguf_imagegen.vocabulary.errors import InvalidModelFile
from tests.weights import write_safetensors

pytestmark = pytest.mark.posix


class Trap:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch unpickled",)


def checkpoint() -> bytes:
    """As `torch.save` writes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(), protocol=2))
    return data.getvalue()


STRANGERS: Mapping[str, tuple[bytes, str]] = {
    "pointer.gguf": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
        "Git LFS pointer",
    ),
    "page.safetensors": (b"\n<!DOCTYPE html><html><title>Sign in</title>" + bytes(600), "web page"),
    "error.safetensors": (b"Invalid username or password.", r"a text \('Invalid username or password.'\)"),
    "index.safetensors": (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "JSON"),
    "model.ckpt": (checkpoint(), "PyTorch checkpoint .* never opened"),
    "renamed.safetensors": (checkpoint(), "PyTorch checkpoint"),
    "old.pt": (pickle.dumps(Trap(), protocol=2), "PyTorch checkpoint"),
    "models.gguf": (b"PK\3\4" + bytes(40), "archive"),
    "turned.gguf": (b"GGUF" + b"\0\0\0\3" + bytes(64), "big-endian GGUF"),
    "picture.gguf": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_model_is_named(tmp_path: Path, name: str) -> None:
    """Nothing of it is unpickled, and nobody is told to get the same file again."""
    data, words = STRANGERS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidModelFile, match=f"^{name}: it is .*{words}") as caught:
        read_header(tmp_path / name)
    assert "get the file again" not in str(caught.value)


@pytest.mark.parametrize("length", [ord("<"), ord("{"), 0x0280, 0x0A0A])
def test_a_header_whose_length_looks_like_text_is_read(tmp_path: Path, length: int) -> None:
    """Safetensors begin with a number, whose bytes may be those of a web page, JSON or a pickle."""
    text = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "m").write_bytes(struct.pack("<Q", length) + text + bytes(4))
    assert list(read_header(tmp_path / "m").tensors) == ["x"]


def test_only_files_are_opened(tmp_path: Path) -> None:
    """A pipe without a writer would block its reader for ever, and a device never ends."""
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero")):
        assert not stat.S_ISREG(path.stat().st_mode)
        with pytest.raises(InvalidModelFile, match="a pipe or a device"):
            read_header(path)


def test_a_file_of_a_hubs_cache_is_told_by_its_content(tmp_path: Path, model_dir: Path) -> None:
    """Its own name is a hash; the link to it gives the model its name."""
    blob, snapshot = tmp_path / "blobs" / ("ab" * 32), tmp_path / "snapshots"
    blob.parent.mkdir()
    snapshot.mkdir()
    shutil.copy(model_dir / "tiny-random.gguf", blob)
    (snapshot / "nice.gguf").symlink_to(blob)
    taesd = model_dir / "tiny-random-tae.gguf"
    assert entry_of_file(snapshot / "nice.gguf", {"taesd": taesd}).id == "nice"
    assert entry_of_file(blob, {"taesd": taesd}).family == "ovis-image"
    plain = write_safetensors(
        tmp_path / ("cd" * 32), {"decoder.conv_in.weight": np.zeros((1, 1), np.float32)}
    )
    assert component_of(read_header(plain)) == "vae"


def write_gguf(path: Path, shapes: Mapping[str, tuple[int, ...]], kind: int | None = None) -> Path:
    writer = gguf.GGUFWriter(str(path), "any")
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer_blocks.0.attn.to_q.weight", "names of diffusers.* a GGUF"),
        ("down_blocks.0.resnets.0.conv1.weight", "names of diffusers"),
        ("double_stream_blocks.0.block.attn1.to_q.weight", "HiDream"),
        ("blocks.0.cross_attn.norm_k.weight", "Wan, which makes videos"),
        ("model.diffusion_model.txt_in.individual_token_refiner.blocks.0.x", "HunyuanVideo"),
        ("double_layers.0.attn.w1q.weight", "AuraFlow"),
        ("net.blocks.0.self_attn.q_proj.weight", "Cosmos"),
        ("patchify_proj.weight", "LTX-Video"),
    ],
)
def test_models_of_other_kinds_are_named(tmp_path: Path, name: str, words: str) -> None:
    """Those that the engine does not run, and those whose names it does not read."""
    path = write_gguf(tmp_path / "m.gguf", {name: (64, 64)})
    assert unfit_words(read_header(path))
    with pytest.raises(InvalidModelFile, match=f"^m.gguf: it is .*{words}"):
        entry_of_file(path)


def test_lumina_is_not_taken_for_z_image(tmp_path: Path) -> None:
    """Of the same names, and another width, which the engine does not know."""
    for width, family in ((2304, "lumina-2"), (2560, "z-image")):
        path = write_gguf(tmp_path / f"{width}.gguf", {"cap_embedder.0.weight": (width,)})
        assert family_of(read_header(path)) == family


def test_flex_2_is_refused_in_words(tmp_path: Path) -> None:
    """The installed engine ends at its first step."""
    shapes = {"img_in.weight": (128, 196), "double_blocks.0.img_attn.proj.weight": (128, 128)}
    with pytest.raises(InvalidModelFile, match=r"Flex\.2, which aborts the engine"):
        entry_of_file(write_gguf(tmp_path / "flex.gguf", shapes))


def test_a_lora_without_a_prefix_is_no_model(tmp_path: Path) -> None:
    """Its layers have a model's names."""
    path = write_gguf(tmp_path / "l.gguf", {"double_blocks.0.img_attn.proj.lora_A.weight": (4, 128)})
    header = read_header(path)
    assert (component_of(header), family_of(header)) == ("lora", None)


def test_types_of_ggml_that_the_engine_does_not_know(tmp_path: Path) -> None:
    """Dropped and newer ones are another quantisation's matter, not damage."""
    path = write_gguf(tmp_path / "t.gguf", {"x": (64, 64)})
    data = path.read_bytes()
    place = data.index(b"x", data.index(b"general.architecture") + 40) + 1 + 4 + 16
    for kind in (31, 63):
        path.write_bytes(data[:place] + bytes([kind, 0, 0, 0]) + data[place + 4 :])
        with pytest.raises(InvalidModelFile, match=f"type {kind} of GGML.*take another quantisation"):
            read_header(path)
