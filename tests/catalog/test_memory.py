"""The memory estimate against what sd.cpp allocates, and the decisions that are made on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from gguf_imagegen.catalog.memory import Estimate, Memory, estimate
from gguf_imagegen.catalog.verdict import verdict
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.machine.memory import Available, available, whole
from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.vocabulary.engine import PreviewMode, Role
from tests.peak import measured_peak, work_of

MIB = 1 << 20
GB = 1_000_000_000
UNET = "model.diffusion_model."


def header(shapes: Mapping[str, tuple[int, ...]], kind: str = "F16") -> Header:
    """A file with these tensors, of two bytes an element whatever their type."""
    tensors = {name: TensorInfo(name, shape, kind, 0, 2 * _product(shape)) for name, shape in shapes.items()}
    return Header("x.gguf", "gguf", tensors, 0)


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * _product(shape[1:]) if shape else 1


def flux(hidden: int, widening: int) -> Header:
    """As much of a Flux-like transformer as says how large it is."""
    return header(
        {
            f"{UNET}txt_in.weight": (hidden, 64),
            f"{UNET}single_blocks.0.linear1.weight": (widening * hidden, hidden),
        }
    )


def sd3(blocks: int) -> Header:
    return header({f"{UNET}joint_blocks.{i}.x_block.attn.qkv.weight": (8, 8) for i in range(blocks)})


SAMPLING: list[tuple[str, Header | int, int, int, float, float]] = [
    ("sd1", 0, 256, 256, 49.57, 30.94),
    ("sd1", 0, 512, 512, 559.90, 123.07),
    ("sd1", 0, 768, 512, 1220.07, 184.53),
    ("sd1", 0, 1024, 1024, 8360.93, 491.60),
    ("sd1-inpaint", 0, 512, 512, 560.47, 123.07),
    ("sd2", 0, 512, 512, 367.98, 123.14),
    ("sd2", 0, 768, 768, 1718.41, 276.70),
    ("sdxl", 0, 512, 512, 132.05, 123.46),
    ("sdxl", 0, 1024, 1024, 830.86, 491.99),
    ("sdxl", 0, 1536, 1536, 3607.58, 1106.21),
    ("sd3", sd3(24), 512, 512, 175.64, 63.88),
    ("sd3", sd3(24), 1024, 1024, 1810.11, 258.84),
    ("sd3", sd3(38), 1024, 1024, 2865.44, 379.89),
    ("sd3", sd3(24), 1536, 1536, 8375.70, 929.12),
    ("flux", 0, 256, 256, 103.57, 82.57),
    ("flux", 0, 512, 512, 341.50, 230.50),
    ("flux", 0, 1024, 1024, 2361.25, 780.25),
    ("flux", 0, 1536, 1536, 9567.50, 1680.50),
    ("chroma", 0, 512, 512, 470.50, 272.50),
    ("chroma", 0, 1024, 1024, 2622.25, 840.25),
    ("flux2", flux(3072, 9), 512, 512, 482.00, 356.00),
    ("flux2", flux(3072, 9), 1024, 1024, 2736.50, 1062.50),
    ("flux2", flux(6144, 9), 1024, 1024, 5472.50, 2124.50),
    ("ovis-image", flux(3072, 11), 1024, 1024, 2566.25, 1189.25),
    ("ovis-image", flux(256, 11), 512, 512, 34.75, 28.50),
    ("qwen-image", 0, 512, 512, 210.72, 174.90),
    ("qwen-image", 0, 1024, 1024, 1946.97, 646.65),
    ("z-image", 0, 512, 512, 315.84, 204.52),
    ("z-image", 0, 1024, 1024, 2592.09, 703.27),
]
"""MiB of the diffusion model's "compute buffer size" as sd.cpp 0.4.7 logs it: without, with flash attention.

With the usual number of text tokens of the family, of Qwen-Image and Z-Image 200.
"""

DECODING: list[tuple[str, tuple[Role, ...], int, int, float]] = [
    ("sd1", ("model",), 256, 256, 416.02),
    ("sd1", ("model",), 1024, 1024, 6656.25),
    ("sdxl", ("model",), 512, 512, 1920.06),
    ("sdxl", ("model", "vae"), 512, 512, 1664.06),
    ("flux", ("diffusion", "vae"), 768, 512, 2496.38),
    ("flux2", ("diffusion", "vae"), 1024, 1024, 6658.00),
    ("qwen-image", ("diffusion", "vae"), 1024, 1024, 7493.50),
    ("sd1", ("diffusion", "taesd"), 512, 512, 480.06),
    ("flux", ("diffusion", "taesd"), 1024, 1024, 1921.00),
]
"""MiB of the decoder's "compute buffer size"."""

SD15, SDXL = 2_133_732_876, 6_942_287_116
PEAKS: list[tuple[str, int, int, bool, bool, int]] = [
    ("sd1", SD15, 256, False, False, 2_635_993_088),
    ("sd1", SD15, 512, True, False, 2_796_843_008),
    ("sd1", SD15, 512, False, True, 3_954_667_520),
    ("sdxl", SDXL, 256, False, False, 7_523_442_688),
]
"""Family, weights, side, tiling, flash attention, and the worker's measured peak.

Of F16 checkpoints with the tensors of SD 1.5 and SDXL, all of them zero.
"""


@pytest.mark.parametrize(("family", "file", "width", "height", "plain", "flash"), SAMPLING)
def test_the_samplers_buffer(
    family: str, file: Header | int, width: int, height: int, plain: float, flash: float
) -> None:
    """Within a fifth of what sd.cpp logs (small ones within a fifth and 16 MiB), never much below it."""
    for logged, attention in ((plain, False), (flash, True)):
        told = estimate({"model": file}, family, width, height, gpu=False, flash_attention=attention)
        assert 0.92 * logged <= told.activations / MIB <= 1.2 * logged + 16


@pytest.mark.parametrize(("family", "roles", "width", "height", "logged"), DECODING)
def test_the_decoders_buffer(
    family: str, roles: tuple[Role, ...], width: int, height: int, logged: float
) -> None:
    """It grows with the pixels alone, and the formula is nearly exact."""
    told = estimate(dict.fromkeys(roles, 0), family, width, height, gpu=False)
    assert told.decode == pytest.approx(logged * MIB, rel=0.02)


def test_direct_convolutions_need_no_copies() -> None:
    """A VAE's "compute buffer size" with them, as sd.cpp 0.4.7 logs it."""
    told = estimate({"model": 0}, "sd1", 256, 256, gpu=False, vae_conv_direct=True)
    assert told.decode == pytest.approx(176.02 * MIB, rel=0.02)


@pytest.mark.parametrize(("family", "size", "side", "tiling", "flash", "measured"), PEAKS)
def test_the_peak_of_stable_diffusion(
    family: str, size: int, side: int, tiling: bool, flash: bool, measured: int
) -> None:
    """Sampling and decoding take turns: everything else and the larger of them make the peak."""
    told = estimate({"model": size}, family, side, side, gpu=False, flash_attention=flash, tile=(32, 32))
    assert told.total(tiling) == pytest.approx(measured, rel=0.02)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("hidden", "blocks", "size"), [(128, 1, "64x64"), (256, 5, "256x128"), (768, 4, "64x64")]
)
def test_the_peak_of_a_real_engine(hidden: int, blocks: int, size: str, tmp_path: Path) -> None:
    """A worker that loads a model and makes an image has needed what was estimated, within a quarter."""
    write_test_model(tmp_path, hidden=hidden, single_blocks=blocks)
    catalog, spec = work_of(tmp_path / "tiny-random.gguf", size)
    entry = catalog.entries[0]
    headers = catalog.checked_files(entry)
    told = estimate(headers, entry.family, spec.width, spec.height, gpu=False).total(spec.vae_tiling)
    assert told == pytest.approx(measured_peak(tmp_path / "tiny-random.gguf", size), rel=0.25)


def test_what_small_cards_can_leave_in_main_memory() -> None:
    """`max_vram` bounds what a card needs, with the weights in main memory; a ControlNet can leave it."""
    files: dict[Role, Header | int] = {"model": SDXL, "control_net": 700 * MIB}
    plain = estimate(files, "sdxl", 1024, 1024, gpu=True).memory(True)
    beside = estimate(files, "sdxl", 1024, 1024, gpu=True, control_net_on_cpu=True).memory(True)
    assert plain.vram - beside.vram == beside.ram - plain.ram == 700 * MIB
    small = estimate(files, "sdxl", 1024, 1024, gpu=True, max_vram=2).memory(True)
    assert small.vram == 2 * 1024 * MIB + 500_000_000
    assert small.ram >= SDXL + 700 * MIB
    assert estimate(files, "sdxl", 1024, 1024, gpu=False, max_vram=2).memory(True).vram == 0


# -- weights ------------------------------------------------------------------------------------------


def weights(family: str, **files: Header | int) -> int:
    return estimate(cast("dict[Role, Header | int]", files), family, 64, 64, gpu=False).weights


@pytest.mark.parametrize(
    ("name", "shape", "kind", "expected"),
    [
        ("input_blocks.0.0.weight", (320, 4, 3, 3), "F32", 320 * 4 * 9 * 2),
        ("out.2.bias", (4,), "F16", 4 * 4),
        ("double_blocks.0.img_mlp.0.weight", (64, 64), "F8_E4M3", 64 * 64 * 2),
        ("double_blocks.0.img_mlp.0.weight", (64, 64), "BF16", 64 * 64 * 2),
    ],
)
def test_tensors_are_counted_as_they_are_loaded(
    name: str, shape: tuple[int, ...], kind: str, expected: int
) -> None:
    """sd.cpp keeps kernels as F16, vectors as F32, 8-bit floats as F16, and other matrices as they are."""
    assert weights("flux", diffusion=header({UNET + name: shape}, kind)) == expected


@pytest.mark.parametrize(("kind", "bytes_each"), [("Q8_0", 2), ("Q6_K", 4), ("BF16", 4)])
def test_an_embedding_that_cannot_be_read_by_rows_grows(kind: str, bytes_each: int) -> None:
    """sd.cpp looks up tokens in few types only, and turns the others into F32."""
    llm = header({"token_embd.weight": (1000, 256)}, kind)
    assert weights("z-image", llm=llm) == 256_000 * bytes_each


def test_tensors_that_are_not_loaded_do_not_count() -> None:
    """The moving average of a checkpoint, an output layer, a decoder of T5 and a VAE that is replaced."""
    model = header({"model_ema.diffusion_model.x": (8, 8), "first_stage_model.decoder.x": (8, 8)})
    llm, t5 = header({"output.weight": (8, 8), "v.blk.0.x": (8, 8)}), header({"dec.blk.0.x": (8, 8)})
    assert weights(
        "flux2", model=model, vae=header({"decoder.y": (4, 4)}), llm=llm, t5xxl=t5
    ) == 4 * 4 * 2 + (151_936 * 4096 * 4)


def test_a_text_encoder_of_unknown_content_is_taken_to_grow() -> None:
    """Its vocabulary may be of a type that is loaded as F32; by the header one knows."""
    assert weights("z-image", llm=2 * GB) == 2 * GB + 151_936 * 2560 * 4
    assert weights("sd1", clip_l=2 * GB) == 2 * GB


# -- where things live --------------------------------------------------------------------------------

FILES: dict[Role, int] = {"diffusion": 6 * GB, "t5xxl": 4 * GB, "vae": GB}


def test_on_a_cpu_everything_is_in_main_memory() -> None:
    """The placement options mean nothing there, as in sd.cpp."""
    plain = estimate(FILES, "flux", 512, 512, gpu=False)
    odd = estimate(
        FILES, "flux", 512, 512, gpu=False, offload_to_cpu=True, vae_on_cpu=True, text_encoders_on_cpu=True
    )
    assert plain == odd
    assert plain.memory(False) == Memory(plain.base + plain.weights + plain.decode)
    assert plain.total(False) == plain.base + plain.weights + max(plain.activations, plain.decode)
    assert plain.total(True) == plain.base + plain.weights + max(plain.activations, plain.decode_tiled)


def test_on_a_gpu_the_weights_are_in_its_memory() -> None:
    """Main memory keeps the program only."""
    told = estimate(FILES, "flux", 512, 512, gpu=True)
    memory = told.memory(False)
    assert memory.ram == told.base
    assert told.weights + told.decode < memory.vram < told.weights + told.decode + GB


def test_parts_that_are_kept_on_the_cpu_take_their_buffers_along() -> None:
    """A decoder on the CPU decodes in main memory; the GPU then needs room for sampling alone."""
    told = estimate(FILES, "flux", 512, 512, gpu=True, vae_on_cpu=True, text_encoders_on_cpu=True)
    memory = told.memory(False)
    assert memory.ram == told.base + 5 * GB + told.decode
    assert 6 * GB + told.activations < memory.vram < 7 * GB + told.activations


def test_offloaded_parts_visit_the_gpu_one_at_a_time() -> None:
    """All weights are in main memory, the largest part with its buffer in that of the GPU."""
    told = estimate(FILES, "flux", 512, 512, gpu=True, offload_to_cpu=True)
    memory = told.memory(False)
    assert memory.ram == told.base + told.weights
    assert 6 * GB + told.activations < memory.vram < 7 * GB + told.activations


@pytest.mark.parametrize(("preview", "extra"), [("none", 0), ("proj", 0), ("tae", 486), ("vae", 1670)])
def test_previews_are_decoded_beside_the_sampler(preview: PreviewMode, extra: int) -> None:
    """The sampler's buffer stays while a preview is decoded, by the TAESD or by the VAE."""
    told = estimate({**FILES, "taesd": 0}, "flux", 512, 512, gpu=False, preview=preview)
    sampling = told.activations + extra * MIB
    assert told.total(False) == told.base + told.weights + max(sampling, told.decode)


def test_references_are_tokens_too() -> None:
    """An edit by one image has nearly twice the tokens, so nearly four times the scores."""
    plain = estimate({"diffusion": GB}, "qwen-image", 1024, 1024, gpu=False)
    edit = estimate({"diffusion": GB}, "qwen-image", 1024, 1024, gpu=False, references=1)
    assert 3 < edit.activations / plain.activations < 4


def test_tiles_bound_the_decoder() -> None:
    """With tiles only the pictures themselves grow with the size; a small image is one tile."""
    small, large = (estimate({"model": GB}, "sd1", side, side, gpu=False) for side in (320, 1024))
    assert small.decode_tiled == small.decode
    assert large.decode_tiled - small.decode_tiled < 30 * MIB < large.decode


# -- decisions ----------------------------------------------------------------------------------------


def an_estimate(ram: int, tiled: int) -> Estimate:
    """1.1 GB of sampling, the rest as given."""
    return Estimate(
        1024, 1024, base=GB // 10, weights=int(5.1 * GB), activations=int(1.1 * GB),
        decode=ram - int(5.2 * GB), decode_tiled=GB // 10, plain=Memory(ram), tiled=Memory(tiled),
    )  # fmt: skip


def test_what_fits_needs_no_tiles() -> None:
    """Tiling is for want of memory only."""
    result = verdict(an_estimate(12 * GB, int(6.2 * GB)), Available(14 * GB))
    assert (result.fits, result.tiling) == (True, False)
    assert result.words == (
        "needs about 12.0 GB of memory for 1024x1024 (5.1 GB weights, 6.8 GB decoding);"
        " 12.6 GB of the 14.0 GB that are free may be used"
    )
    assert verdict(an_estimate(12 * GB, int(6.2 * GB)), Available(13 * GB)).tiling


def test_what_fits_in_tiles_only_is_tiled() -> None:
    """The decoder's buffer is what a large image fails of, and tiles avoid it."""
    result = verdict(an_estimate(12 * GB, int(6.2 * GB)), Available(7 * GB))
    assert (result.fits, result.tiling) == (True, True)
    assert "6.2 GB of memory for 1024x1024 with tiled decoding" in result.words


def test_what_does_not_fit_says_what_it_needs() -> None:
    """Numbers of what is needed at least, and of what is there."""
    result = verdict(an_estimate(int(6.2 * GB), int(6.2 * GB)), Available(800_000_000))
    assert (result.fits, result.tiling) == (False, False)
    assert result.words == (
        "needs about 6.2 GB of memory for 1024x1024 (5.1 GB weights, 1.1 GB sampling);"
        " 720 MB of the 800 MB that are free may be used"
    )


def test_graphics_memory_decides_on_a_gpu() -> None:
    """Main memory alone does not help; what is not known is not held against the model."""
    told = estimate(FILES, "flux", 512, 512, gpu=True)
    assert "graphics memory" in verdict(told, Available(100 * GB, 8 * GB)).words
    assert not verdict(told, Available(100 * GB, 8 * GB)).fits
    assert verdict(told, Available(100 * GB, 24 * GB)).fits
    assert verdict(told, Available(100 * GB, None)).fits
    assert not verdict(told, Available(10_000_000, 24 * GB)).fits


# -- the machine --------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_this_machine_has_memory() -> None:
    """Whatever it is, it answers."""
    free = available()
    assert free.ram > 0
    assert free.vram is None or free.vram > 0


def test_the_limit_of_a_cgroup_bounds_what_is_free(tmp_path: Path) -> None:
    """Files in its cache can be dropped and count as free; a limit above it holds too (cgroup v2)."""
    write(tmp_path / "proc/self", cgroup="0::/pod/box\n")
    pod = tmp_path / "sys/fs/cgroup/pod"
    stat = "anon 1\ninactive_file 20000\n"
    write(pod / "box", memory__max="max\n", memory__current="50000\n", memory__stat=stat)
    write(pod, memory__max="100000\n", memory__current="70000\n", memory__stat=stat)
    assert available(tmp_path).ram == 50_000
    assert whole(tmp_path).ram == 100_000


def test_the_limit_of_an_old_cgroup(tmp_path: Path) -> None:
    """cgroup v1 has other names; within a container the path may not be there and the mount's root holds."""
    write(tmp_path / "proc/self", cgroup="5:cpu,cpuacct:/x\n4:memory:/docker/1234\n")
    write(
        tmp_path / "sys/fs/cgroup/memory",
        memory__limit_in_bytes="90000\n",
        memory__usage_in_bytes="95000\n",
        memory__stat="total_inactive_file 10000\n",
    )
    assert available(tmp_path).ram == 5_000
    assert whole(tmp_path).ram == 90_000


def test_the_memory_of_a_gpu_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is asked first where its binding is installed."""
    nvml = ModuleType("pynvml")
    vars(nvml).update(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=5 * GB, total=8 * GB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert (available().vram, whole().vram) == (5 * GB, 8 * GB)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 8192, 9000; echo 4096, 9000", 8 << 30),
        ("exit 9", None),
        ("echo '[N/A], [N/A]'", None),
        ("true", None),
    ],
)
def test_the_memory_of_a_gpu_by_the_tool(
    script: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first GPU's number in MiB; a tool that fails or talks nonsense leaves it unknown."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert available().vram == expected


def test_the_matrices_of_a_control_net_are_f32() -> None:
    """sd.cpp asks the main model's file for their types, and does not find them there."""
    matrix, kernel = (
        TensorInfo("a.weight", (8, 16), "F16", 0, 256),
        TensorInfo("b", (1, 1, 3, 3), "F16", 0, 18),
    )
    control = Header("control.safetensors", "safetensors", {"a.weight": matrix, "b": kernel}, 274)
    with_it = estimate({"model": 1000, "control_net": control}, "sd1", 64, 64, gpu=False)
    without = estimate({"model": 1000}, "sd1", 64, 64, gpu=False)
    assert with_it.weights - without.weights == 4 * 8 * 16 + 18
