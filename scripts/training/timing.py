"""Everything that depends on the time: modulations as least squares of the time's features, and the layer
norms.

A layer norm divides by the spread of all 384 numbers. Two of them are +240 and -240, so the spread is nearly
constant and the norm nearly linear; the modulation multiplies by the same spread and zeroes the two, which
would otherwise set the scale of their block of Q8_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .network import HIDDEN, SINGLES, Network, Weights
from .pictures import Floats
from .stream import BALANCE, FETCH, MINUS, NOTES, PLUS, SEED, A, G, P, X

SPREAD = math.sqrt(2 * A * A / HIDDEN)
FAINT = 0.25  # of the last note's mean from the second single block on
FAINTEST = 0.1  # of the first in the double block's MLP
LEAST = 0.12  # 1/t below is as at this time: there is no way left to go
TIMES = np.concatenate((np.linspace(0.002, 1, 900), np.ones(60))).astype(np.float32)


def clock(weights: Weights) -> None:
    """`time_in`: random features of the slow waves."""
    rng = np.random.default_rng(0)
    slow = np.zeros(256)
    slow[66:128] = slow[194:256] = 1
    weights["time_in.in_layer.weight"][:] = rng.normal(size=(HIDDEN, 256)) * slow * 0.6
    weights["time_in.in_layer.bias"][:] = rng.normal(size=HIDDEN)
    weights["time_in.out_layer.weight"][:] = rng.normal(size=(HIDDEN, HIDDEN)) * 1.5 / math.sqrt(HIDDEN)
    for name in ("time_in.in_layer.weight", "time_in.out_layer.weight"):
        weights[name][:] = weights[name].astype(np.float16)


def norms(weights: Weights) -> None:
    """Modulations that undo the layer norms and leave all gates open."""
    for name, parts in _modulations():
        bias = weights[f"{name}.bias"].reshape(parts, HIDDEN)
        bias[1::3] = SPREAD - 1
        bias[1::3, PLUS : MINUS + 1] = bias[1::3, BALANCE] = -1
        bias[2::3] = 1
    image = weights["double_blocks.0.img_mod.lin.bias"].reshape(6, HIDDEN)
    image[4, SEED] = -1
    image[4, SEED.start] = SPREAD * FAINTEST - 1
    for block in range(1, SINGLES):
        _still(weights, block)


def _still(weights: Weights, block: int) -> None:
    """The notes' means can be large, and would coarsen what Q8_0 rounds along with them.

    Most are not read again.
    """
    bias = weights[f"single_blocks.{block}.modulation.lin.bias"].reshape(3, HIDDEN)
    bias[1, PLUS : MINUS + 1] = bias[1, BALANCE] = bias[1, SEED] = -1
    bias[1, SEED.stop - 1] = (1 + bias[1, FETCH]) * FAINT - 1


def widen(weights: Weights, block: int, stream: Floats) -> None:
    """Undo the layer norm as it is for this stream."""
    bias = weights[f"single_blocks.{block}.modulation.lin.bias"].reshape(3, HIDDEN)
    bias[1] += float(stream.std(-1).mean()) - (1 + bias[1, FETCH])
    _still(weights, block)


def _modulations() -> list[tuple[str, int]]:
    double = [(f"double_blocks.0.{stream}_mod.lin", 6) for stream in ("img", "txt")]
    return double + [(f"single_blocks.{block}.modulation.lin", 3) for block in range(SINGLES)]


def follow(
    weights: Weights,
    network: Network,
    name: str,
    part: int,
    dims: slice | int,
    wanted: Callable[[Floats], Floats],
    care: Callable[[Floats], Floats] | None = None,
) -> None:
    """Let numbers of one part of a modulation follow the time: `wanted` of [times] is [times] or
    [times, dims].
    """
    features = network.features(TIMES).astype(np.float64)
    wide = np.concatenate((features, np.ones((len(TIMES), 1))), 1)
    aim = np.asarray(wanted(TIMES.astype(np.float64))).reshape(len(TIMES), -1)
    row = (care(TIMES) if care else np.ones(len(TIMES)))[:, None]
    gram = (wide * row).T @ (wide * row)
    gram += np.eye(len(gram)) * 1e-6 * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram, (wide * row).T @ (aim * row))
    weight, bias = weights.both(name)
    start = part * HIDDEN + (dims if isinstance(dims, int) else dims.start)
    rows = slice(start, start + aim.shape[1])
    weight[rows], bias[rows] = solved[:-1].T, solved[-1]
    off = np.abs((wide @ solved - aim) * row).max()
    print(f"{name}[{part}]: off by at most {off:.4f} of {np.abs(aim * row).max():.2f}")


def velocity(weights: Weights, network: Network, rows: Floats, stream: Floats) -> None:
    """The last layer: (x - picture) / t, back from the basis."""
    spread = float(stream.std(-1).mean())
    linear = weights["final_layer.linear.weight"]
    used = len(rows)
    linear[:used, X], linear[:used, P] = rows.T / G, -rows.T / G
    linear[used:, NOTES] = np.eye(4) / G
    name = "final_layer.adaLN_modulation.1"
    scale = weights[f"{name}.bias"].reshape(2, HIDDEN)[1]
    follow(
        weights, network, name, 1, 0, lambda t: spread / t.clip(LEAST) - 1, lambda t: t.clip(LEAST) / spread
    )
    weight = weights[f"{name}.weight"].reshape(2, HIDDEN, HIDDEN)[1]
    weight[:], scale[:] = weight[0], scale[0]
    weight[PLUS : MINUS + 1], scale[PLUS : MINUS + 1] = 0, -1
