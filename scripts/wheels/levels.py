"""The levels of CPU that the engine is built for: CMake's flags, and what a CPU must have for each.

The names of x86-64 are those of its psABI. Our kernels need AVX2, so that the lowest level is ggml's own
code; with AVX-512 it is ggml's for 512 bits, and ours for AVX2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

X86_FLAGS: Final = (
    "SSE42", "AVX", "AVX2", "BMI2", "F16C", "FMA", "AVX_VNNI",
    "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16",
)  # fmt: skip
"""Of ggml's ggml-cpu/CMakeLists.txt: all are said, for what is left out follows the building machine."""


@dataclass(frozen=True)
class Level:
    """`needs` are words of /proc/cpuinfo; `own` are the flags of ggml that are on."""

    name: str
    needs: tuple[str, ...]
    own: tuple[str, ...] = ()
    arch: str = ""

    @property
    def cmake(self) -> tuple[str, ...]:
        """The part of CMake's command that is this level's."""
        said = [f"-DGGML_{flag}={'ON' if flag in self.own else 'OFF'}" for flag in X86_FLAGS if not self.arch]
        return (*said, f"-DGGML_CPU_ARM_ARCH={self.arch}") if self.arch else tuple(said)

    @property
    def file(self) -> str:
        return f"libstable-diffusion-{self.name}.so"


_V2: Final = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3: Final = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4: Final = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_OF_V3: Final = ("SSE42", "AVX", "AVX2", "BMI2", "F16C", "FMA")

LEVELS: Final[Mapping[str, tuple[Level, ...]]] = {
    "x86_64": (
        Level(
            "x86-64-v4-bf16",
            (*_V4, "avx512_bf16", "avx512_vnni"),
            (*_OF_V3, "AVX512", "AVX512_VNNI", "AVX512_BF16"),
        ),
        Level("x86-64-v4", _V4, (*_OF_V3, "AVX512")),
        Level("x86-64-v3", _V3, _OF_V3),
        Level("x86-64-v2", _V2, ("SSE42",)),
    ),
    "aarch64": (
        Level("armv8.2-dotprod-fp16", ("asimd", "asimddp", "asimdhp", "fphp"), (), "armv8.2-a+dotprod+fp16"),
        Level("armv8", ("asimd",), (), "armv8-a"),
    ),
}
"""By machine, as `platform.machine` names it."""


def levels_for(machine: str, names: str = "") -> tuple[Level, ...]:
    """All of a machine, or those named; the lowest is always among them. Raises ValueError."""
    every = LEVELS.get(machine, ())
    wanted = set(filter(None, names.split(","))) or {level.name for level in every}
    if not every or wanted - {level.name for level in every}:
        known = ", ".join(level.name for level in every) or "none"
        raise ValueError(f"levels of {machine} are: {known}")
    return tuple(level for level in every if level.name in wanted or level is every[-1])
