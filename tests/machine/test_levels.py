"""Levels of CPU: what a CPU with certain flags runs, and what a wheel's list names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_imagegen.machine.levels import (
    VARIABLE,
    InUse,
    Level,
    cpu_flags,
    exports,
    in_use,
    installed_levels,
    runnable,
    use,
)
from scripts.wheels.engine import LIBRARY, manifest
from scripts.wheels.levels import LEVELS, X86_FLAGS, levels_for

NEHALEM = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
HASWELL = f"{NEHALEM} abm avx avx2 bmi1 bmi2 f16c fma movbe"
SKYLAKE_X = f"{HASWELL} avx512f avx512bw avx512cd avx512dq avx512vl"
ZEN4 = f"{SKYLAKE_X} avx512_vnni avx512_bf16"


def wheel_of(folder: Path, machine: str = "x86_64", without: tuple[str, ...] = ()) -> tuple[Level, ...]:
    """What is installed by a wheel of every level, less some of the libraries."""
    said = manifest("cpu", levels_for(machine))
    (folder / "levels.json").write_text(json.dumps(said))
    for level in LEVELS[machine]:
        name = LIBRARY if level is LEVELS[machine][-1] else level.file
        if level.name not in without:
            (folder / name).touch()
    return installed_levels(folder)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (NEHALEM, ["x86-64-v2"]),
        (HASWELL, ["x86-64-v3", "x86-64-v2"]),
        (HASWELL.replace("fma", "fma4"), ["x86-64-v2"]),
        (SKYLAKE_X, ["x86-64-v4", "x86-64-v3", "x86-64-v2"]),
        (ZEN4, ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "x86-64-v2"]),
        ("", ["x86-64-v2"]),
    ],
)
def test_a_cpu_runs_what_it_has_the_flags_for(flags: str, names: list[str], tmp_path: Path) -> None:
    """Best first; the lowest where nothing is known of the CPU."""
    found = runnable(wheel_of(tmp_path), frozenset(flags.split()))
    assert [level.name for level in found] == names
    assert found[-1].library == tmp_path / LIBRARY, "what the binding loads by itself"


def test_arm_has_levels_of_its_own(tmp_path: Path) -> None:
    found = runnable(wheel_of(tmp_path, "aarch64"), frozenset({"asimd", "asimddp", "asimdhp", "fphp"}))
    assert [level.name for level in found] == ["armv8.2-dotprod-fp16", "armv8"]


def test_flags_of_a_cpu(tmp_path: Path) -> None:
    """As Linux lists them, on x86 and on ARM; none where there is no such file."""
    (tmp_path / "x86").write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    )
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(tmp_path / "x86") == {"fpu", "avx2", "fma"}
    assert cpu_flags(tmp_path / "arm") == {"fp", "asimd"}
    assert cpu_flags(tmp_path / "windows") == frozenset()


def test_a_library_that_is_not_there_is_not_offered(tmp_path: Path) -> None:
    found = wheel_of(tmp_path, without=("x86-64-v4",))
    assert [level.name for level in found] == ["x86-64-v4-bf16", "x86-64-v3", "x86-64-v2"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"levels": [{"file": "a"}]}', '{"levels": 1}'])
def test_an_engine_of_one_build(text: str | None, tmp_path: Path) -> None:
    """Has no list, or one that nobody can use."""
    (tmp_path / "a").touch()
    if text is not None:
        (tmp_path / "levels.json").write_text(text)
    assert installed_levels(tmp_path) == ()


def test_processes_are_told_of_the_build() -> None:
    """By the variable that the binding reads."""
    environment: dict[str, str] = {}
    assert in_use(environment) is None
    library = Path("/lib/v3.so")
    use(Level("x86-64-v3", library), "the best for this CPU: yes", environment)
    assert environment[VARIABLE] == str(library)
    assert in_use(environment) == InUse("x86-64-v3", "the best for this CPU: yes")


def test_every_flag_of_ggml_is_said() -> None:
    """What is left out of CMake's command would follow the machine that builds."""
    for level in LEVELS["x86_64"]:
        said = [word.split("=")[0].removeprefix("-DGGML_") for word in level.cmake]
        assert said == list(X86_FLAGS)
        assert set(level.own) <= set(X86_FLAGS)
    assert "-DGGML_AVX512=OFF" in LEVELS["x86_64"][2].cmake


def test_levels_by_name() -> None:
    """The lowest is always built, as it is what any CPU falls back to."""
    assert [level.name for level in levels_for("x86_64", "x86-64-v3")] == ["x86-64-v3", "x86-64-v2"]
    with pytest.raises(ValueError, match="levels of x86_64 are: x86-64-v4-bf16, x86-64-v4"):
        levels_for("x86_64", "x86-64-v5")
    with pytest.raises(ValueError, match="levels of riscv64 are: none"):
        levels_for("riscv64")


def test_a_function_is_seen_in_the_librarys_file(tmp_path: Path) -> None:
    """By its whole name, without loading it; an empty file has none, and one that is gone neither."""
    library = tmp_path / "libstable-diffusion.so"
    library.write_bytes(b"\x7fELF\0generate_image\0sd_set_variation_of\0")
    there = {VARIABLE: str(library)}
    assert [exports(name, there) for name in ("generate_image", "sd_set_variation")] == [True, False]
    library.write_bytes(b"")
    assert not exports("generate_image", there)
    assert not exports("generate_image", {VARIABLE: str(tmp_path / "gone.so")})
    assert exports("generate_image", {}), "the engine's own"
