"""Gated units of an MLP as building blocks: products, switches and steps out of silu(gate) * up."""

from __future__ import annotations

from collections.abc import Mapping

from .network import HIDDEN, Weights
from .pictures import Floats
from .stream import ON

Reads = Mapping[int, float]


class Units:
    """The MLP of one single block."""

    def __init__(self, weights: Weights, block: int) -> None:
        weight, bias = weights.both(f"single_blocks.{block}.linear1")
        ups, gates = slice(3 * HIDDEN, 7 * HIDDEN), slice(7 * HIDDEN, 11 * HIDDEN)
        self.up, self.up_bias, self.gate, self.gate_bias = weight[ups], bias[ups], weight[gates], bias[gates]
        self.write = weights[f"single_blocks.{block}.linear2.weight"][:, HIDDEN:]
        self.count = 0

    def unit(
        self,
        gate: Reads,
        gate_bias: float,
        to: Mapping[int, float],
        up: Reads | None = None,
        up_bias: float = 0,
    ) -> None:
        """Write silu(gate) * up, where `up` alone is 1 if nothing is read for it."""
        n = self.count
        self.count += 1
        _read(self.gate[n], gate)
        self.gate_bias[n] = gate_bias
        _read(self.up[n], up or {})
        self.up_bias[n] = up_bias if up or up_bias else 1
        for dim, value in to.items():
            self.write[dim, n] = value

    def switch(self, on: Reads, rest: float, to: Mapping[int, float], up: Reads | None = None) -> None:
        """Write `up` (or 1) where `rest` plus the numbers of `on` is 1, nothing where it is 0 or less."""
        gate = {dim: 2 * ON * value for dim, value in on.items()}
        self.unit(gate, ON * (2 * rest - 1), {dim: value / ON for dim, value in to.items()}, up)

    def product(
        self,
        one: Reads,
        to: Mapping[int, float],
        up: Reads | None = None,
        shut: Reads | None = None,
        rest: float = 0,
    ) -> None:
        """Write `one` times `up`, for silu(x) - silu(-x) = x; nothing where `rest` plus `shut` is 1."""
        for sign in (1, -1):
            gate = {dim: SLOPE * sign * value for dim, value in one.items()}
            for dim, value in (shut or {}).items():
                gate[dim] = gate.get(dim, 0) - SHUT * value
            self.unit(gate, -SHUT * rest, {dim: sign * value / SLOPE for dim, value in to.items()}, up)

    def step(self, of: Reads, low: float, high: float, to: Mapping[int, float]) -> None:
        """Write nothing where the number is below `low`, all where it is above `high`."""
        slope = ON / (high - low)
        for edge, sign in ((low, 1), (high, -1)):
            gate = {dim: slope * value for dim, value in of.items()}
            self.unit(gate, -slope * edge, {dim: sign * value / ON for dim, value in to.items()})

    def above(self, of: Reads, start: float, to: Mapping[int, float], shut: Reads) -> None:
        """Write how far the number is above `start`."""
        gate = {dim: ON * value for dim, value in of.items()}
        for dim, value in shut.items():
            gate[dim] = gate.get(dim, 0) - 4 * SHUT * value
        self.unit(gate, -ON * start, {dim: value / ON for dim, value in to.items()})


SLOPE = 4.0  # of products: larger numbers than 1 for Q8_0 to round
SHUT = 16.0  # enough to close a gate whose number is at most about 2


def _read(row: Floats, reads: Reads) -> None:
    for dim, value in reads.items():
        row[dim] += value
