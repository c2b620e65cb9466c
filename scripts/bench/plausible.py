"""Models of Stable Diffusion 1.5's size whose random weights say something, so that pictures can be compared.

With all weights zero every engine draws the same grey, and with plain noise the values of the layers grow or
vanish and the sampler runs away: neither would show what an engine's rounding does to a picture. These
weights are random, and drawn as those of a trained network are spread:

* A layer's weights have a variance of gain² ÷ inputs (Xavier; with He's gain of 1.67 behind a SiLU), so that
  values keep a size of about one through the network. Norms scale by about one.
* What a residual branch adds has half of that size, as many of them follow each other.
* Queries are twice as large: logits of attention spread by 2, so that each position attends to a few others.
* A trained UNet foretells the noise, which at most noise levels is nearly its input. So four latents go
  through eight channels of the first convolution, the last skip connection and the last convolution
  (plus and minus, for silu(x) - silu(-x) = x) with a gain of 0.9, and all the other layers add 0.4 to it:
  the sampler converges, and the prompt, every block and every attention have their part in the picture.
* The decoder takes latents of the size that the sampler leaves, and gives colours with a deviation of 0.4 in
  [-1, 1]: few are clipped.

Matrices in F16, Q8_0 or Q4_0, convolutions in F16, vectors in F32, as sd.cpp's own conversion writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt

from scripts.bench.figures import CACHE
from scripts.bench.synthetic import UNET, Shape, Tensors, sd1, sdxs

Array = npt.NDArray[np.float32]
TYPES: Final = ("F16", "Q8_0", "Q4_0")
MODELS: Final[dict[str, Callable[[], Tensors]]] = {"sd15": sd1, "sdxs": sdxs}
SILU, GEGLU = 1.67, 1.53
"""One over the root mean square of what these leave of values of size one."""
BRANCH = 0.5
LATENTS = 4
FORETOLD, LEARNED = 0.9, 0.4
"""How much of the noise that the UNet tells is its input, and how much comes of all the other layers."""
GAINS: Final = (
    (r"token_embedding|position_embedding", 0.5),
    (r"post_quant_conv", 0.18),
    (r"decoder\.conv_out", 0.4 * SILU),
    (r"diffusion_model\.out\.2", LEARNED * SILU),
    (r"\.(to_q|q_proj|attn_1\.q)\.", 2.0),
    (r"\.(out_layers\.3|conv2)\.", BRANCH * SILU),
    (r"\.ff\.net\.2\.", BRANCH * GEGLU),
    (r"\.(to_out\.0|proj_out|out_proj|fc2|emb_layers\.1)\.", BRANCH),
    (r"\.(in_layers\.2|conv1|conv_out|time_embed\.2)\.", SILU),
)
"""By a pattern of the name, the first that is found; 1 where none is."""
LAST = f"{UNET}output_blocks.11."


def model_file(name: str, kind: str) -> Path:
    """A model by its name in `MODELS` with its matrices of this type; written unless it is in the cache."""
    path = CACHE / "models" / f"{name}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write_plausible(unfinished, MODELS[name](), kind)
        unfinished.rename(path)
    return path


def write_plausible(path: Path, tensors: Tensors, kind: str = "F16") -> Path:
    """A GGUF file of these tensors; equal for equal arguments."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "sd1", use_temp_file=True)
    for name, shape in tensors:
        values = weight(rng, name, shape)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        elif kind == "F16" or len(shape) > 2 or "embedding" in name:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            as_type = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, as_type), raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weight(rng: np.random.Generator, name: str, shape: Shape) -> Array:
    """The values of one tensor."""
    noise = rng.standard_normal(shape, np.float32)
    if name.endswith(".bias"):
        noise *= 0.05
    elif len(shape) == 1:
        noise = 1 + np.float32(0.1) * noise
    else:
        inputs = 1 if "embedding" in name else int(np.prod(shape[1:]))
        noise *= np.float32(gain(name) / inputs**0.5)
    return with_foretold_noise(name, noise)


def gain(name: str) -> float:
    return next((factor for pattern, factor in GAINS if re.search(pattern, name)), 1.0)


def with_foretold_noise(name: str, values: Array) -> Array:
    """The layers by which the latents go from the first convolution to the last (Stable Diffusion 1.5)."""
    signs = np.repeat(np.array([1, -1], np.float32), LATENTS)
    channels = np.arange(2 * LATENTS)
    if name == f"{UNET}input_blocks.0.0.weight":
        values[channels] = 0
        values[channels, channels % LATENTS, 1, 1] = signs
    elif name == f"{LAST}0.skip_connection.weight":
        values[channels] = 0
        values[channels, values.shape[0] + channels, 0, 0] = 1
    elif name in (f"{LAST}0.out_layers.3.weight", f"{LAST}1.proj_out.weight"):
        values[channels] = 0
    elif name == f"{UNET}out.2.weight":
        values[:, channels] = 0
        values[channels % LATENTS, channels, 1, 1] = FORETOLD * signs
    return values
