"""LoRAs compared with models by their headers alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.modelfiles.lora import Fit, fit
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile

Shapes = dict[str, tuple[int, ...]]
Files = dict[Role, Header]

MODEL: Shapes = {
    "double_blocks.0.img_attn.qkv.weight": (384, 128),
    "double_blocks.0.img_attn.proj.weight": (128, 128),
    "double_blocks.0.img_attn.proj.bias": (128,),
    "img_in.weight": (128, 64),
}
PROJ = "diffusion_model.double_blocks.0.img_attn.proj"
ATTENTION = "transformer.transformer_blocks.0.attn"


def header(shapes: Shapes, name: str = "x.safetensors", type: str = "F16") -> Header:
    return Header(name, "safetensors", {n: TensorInfo(n, s, type, 0, 2) for n, s in shapes.items()}, 2)


def fitted(shapes: Shapes, type: str = "F16", model: str = "F16") -> Fit:
    files: Files = {"diffusion": header(MODEL, type=model)}
    return fit(header(shapes, type=type), files, "flux", "some-model")


def low_rank(name: str, rows: int, columns: int, rank: int = 4) -> Shapes:
    return {f"{name}.lora_B.weight": (rows, rank), f"{name}.lora_A.weight": (rank, columns)}


QKV = {**low_rank(f"{ATTENTION}.to_q", 128, 128), **low_rank(f"{ATTENTION}.to_k", 128, 128),
       **low_rank(f"{ATTENTION}.to_v", 128, 128)}  # fmt: skip
LOHA: Shapes = {
    f"{PROJ}.hada_w{n}_{half}": shape for n in "12" for half, shape in (("a", (128, 4)), ("b", (4, 128)))
}


@pytest.mark.parametrize(
    ("shapes", "fitting"),
    [
        (low_rank(PROJ, 128, 128), 2),
        ({**low_rank(PROJ, 128, 128), f"{PROJ}.alpha": ()}, 3),
        ({**low_rank(PROJ, 128, 128), f"{PROJ}.dora_scale": (128, 1)}, 2),
        ({**low_rank(PROJ, 128, 128), **low_rank("elsewhere", 9, 9)}, 2),
        (low_rank(PROJ, 128, 128, rank=1), 2),
        (QKV, 6),
        (LOHA, 4),
        ({f"{PROJ}.lokr_w1": (8, 8), f"{PROJ}.lokr_w2": (16, 16)}, 2),
        ({f"{PROJ}.diff": (128, 128), f"{PROJ}.diff_b": (128,)}, 2),
    ],
)
def test_what_fits_is_counted(shapes: Shapes, fitting: int) -> None:
    """Every tensor that the engine uses, alphas included; what it passes over is named."""
    found = fitted(shapes)
    assert (found.fitting, found.total) == (fitting, len(shapes))
    assert bool(found.stranger) == (fitting < len(shapes))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (low_rank(PROJ, 3072, 3072), "another model: .* 3072x3072 .* has 128x128; 0 of 2"),
        ({**low_rank(PROJ, 128, 128), **low_rank("diffusion_model.img_in", 128, 65)}, "; 2 of 4 tensors fit"),
        (low_rank("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 768), "names .* 0 of 2 tensors"),
        ({f"{PROJ}.lora_B.weight": (128, 8), f"{PROJ}.lora_A.weight": (4, 128)}, "each other, 8 and 4"),
        (low_rank(f"{ATTENTION}.to_q", 128, 128), "128 of the 384 rows of double_blocks.0.img_attn"),
        (low_rank(PROJ, 64, 128), "64 of the 128 rows"),
        ({f"{PROJ}.lora_B.weight": (128, 4, 1, 1), f"{PROJ}.lora_A.weight": (4, 128, 1, 1)}, "128x128x1x1"),
        ({f"{PROJ}.lora_B.weight": (128,), f"{PROJ}.lora_A.weight": (4, 128)}, "damaged"),
        ({f"{PROJ}.lora_B.weight": (128, 0), f"{PROJ}.lora_A.weight": (0, 128)}, "empty"),
        ({f"{PROJ}.lokr_w1": (8, 8), f"{PROJ}.lokr_w2_a": (16, 4), f"{PROJ}.lokr_w2_b": (4, 16)}, "split"),
        ({f"{PROJ}.lokr_w1": (8, 8)}, "split"),
        ({**LOHA, f"{PROJ}.hada_w2_b": (4, 64)}, "different shapes"),
        ({f"{PROJ}.diff_b": (64,)}, "another model"),
        ({**low_rank(PROJ, 128, 128), **low_rank(f"lora.{PROJ}", 128, 128)}, "twice"),
        (low_rank("first_stage_model.decoder.conv_in", 4, 4), "image decoder"),
    ],
)  # fmt: skip
def test_what_would_end_the_engine_or_do_nothing_is_refused(shapes: Shapes, words: str) -> None:
    """In words that name the file, and for which model how much of it fits."""
    with pytest.raises(InvalidModelFile, match=f"lora: x.safetensors .*{words}") as caught:
        fitted(shapes)
    assert caught.value.param == "lora"


def test_whole_matrices_are_not_added_to_quantised_weights() -> None:
    """There the engine has no operation for it, and ends; a matrix of low rank it multiplies apart."""
    assert fitted(low_rank(PROJ, 128, 128), model="Q4_K").fitting == 2
    difference: Shapes = {f"{PROJ}.diff": (128, 128)}
    for shapes in (LOHA, difference):
        with pytest.raises(InvalidModelFile, match="is Q4_K, take the model in FP16"):
            fitted(shapes, model="Q4_K")


@pytest.mark.parametrize(("type", "words"), [("I32", "cannot apply"), ("I8", "does not read")])
def test_integers_are_no_weights(type: str, words: str) -> None:
    """Neither the type that the engine reads, nor the one that it does not."""
    with pytest.raises(InvalidModelFile, match=words):
        fitted(low_rank(PROJ, 128, 128), type=type)


def test_convolutions_want_their_own_kernels() -> None:
    """A U-Net's convolution has a kernel in its first matrix, or in a core between both."""
    conv = "input_blocks.1.0.in_layers.2"
    files: Files = {"diffusion": header({f"{conv}.weight": (320, 320, 3, 3)})}

    def of(down: tuple[int, ...], mid: tuple[int, ...] | None = None) -> Fit:
        name = f"lora_unet_{conv.replace('.', '_')}"
        shapes = {f"{name}.lora_up.weight": (320, 4, 1, 1), f"{name}.lora_down.weight": down}
        return fit(header(shapes | ({f"{name}.lora_mid.weight": mid} if mid else {})), files, "sd1", "some")

    assert of((4, 320, 3, 3)).fitting == 2
    assert of((4, 320, 1, 1), (4, 4, 3, 3)).fitting == 3
    for wrong in ((4, 320, 1, 1), (4, 2880)):
        with pytest.raises(InvalidModelFile):
            of(wrong)


@pytest.mark.parametrize(
    ("theirs", "known"),
    [
        (f"base_model.model.{PROJ.removeprefix('diffusion_model.')}", PROJ),
        (f"base_model.model.{PROJ}", PROJ),
        (PROJ.removeprefix("diffusion_model."), PROJ),
        (f"base_model.model.{ATTENTION}.to_out.0", f"{ATTENTION}.to_out.0"),
        (f"base_model.model.{ATTENTION.removeprefix('transformer.')}.to_out.0",
         f"{ATTENTION.removeprefix('transformer.')}.to_out.0"),
    ],
)  # fmt: skip
def test_names_of_peft_are_told_as_the_engine_knows_them(theirs: str, known: str) -> None:
    """With whatever stands before them; what is known already stays as it is."""
    found = fitted(low_rank(theirs, 128, 128))
    assert found.fitting == 2
    assert found.renamed == {f"{theirs}.lora_{x}.weight": f"{known}.lora_{x}.weight" for x in "AB"}
    assert fitted(low_rank(known, 128, 128)).renamed == {}


UNET: Shapes = {
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
}
BLOCK, LAYER = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "encoder.layers.0.self_attn.q_proj",
)


@pytest.mark.parametrize(
    "shapes",
    [
        {**low_rank(f"base_model.model.{BLOCK}", 320, 320),
         **low_rank(f"base_model.model.text_model.{LAYER}", 768, 768)},
        {**low_rank(f"unet.{BLOCK}", 320, 320), **low_rank(f"text_encoder.text_model.{LAYER}", 768, 768)},
        {f"text_encoder.text_model.{LAYER}.lora_linear_layer.up.weight": (768, 4),
         f"text_encoder.text_model.{LAYER}.lora_linear_layer.down.weight": (4, 768)},
    ],
)  # fmt: skip
def test_names_of_a_u_net_and_its_text_encoder(shapes: Shapes) -> None:
    """Without a prefix, as PEFT saves them, and as diffusers calls text encoders."""
    assert fit(header(shapes), {"model": header(UNET)}, "sd1", "some").fitting == len(shapes)


def test_only_safetensors_are_renamed() -> None:
    """A GGUF is refused as before."""
    lora = replace(header(low_rank(f"base_model.model.{PROJ}", 128, 128)), format="gguf")
    with pytest.raises(InvalidModelFile, match="names that the engine does not know: 0 of 2"):
        fit(lora, {"diffusion": header(MODEL)}, "flux", "some")
