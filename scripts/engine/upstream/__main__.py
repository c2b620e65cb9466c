"""Make a git repository of ggml, as the engine's archive has it, with the kernels in commits.

A commit brings files of its own, and those lines of shared files that name nothing of later commits, so that
each builds. The patches that `git format-patch` writes lie beside the repository, for a person to send.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.engine.patched import HERE, fetched, unpacked

KERNELS: Final = HERE / "kernels"
CHECKS: Final = HERE / "checks" / "check_ops.cpp"
GGML: Final = "vendor/stable-diffusion.cpp/ggml"
KERNELS_THERE: Final = "src/ggml-cpu"
TEST_THERE: Final = "tests/test-packed.cpp"
TESTS_LIST: Final = "tests/CMakeLists.txt"
SHARED: Final = ("packed.cpp", "packed.h")
"""Kernels of which each commit has its part."""

PROGRAM: Final = """\
    #
    # test-packed

    add_executable(test-packed test-packed.cpp)
    target_link_libraries(test-packed PRIVATE ggml)
"""


@dataclass(frozen=True)
class Commit:
    """`functions` are those of packed.h that its files define; `test` is a KIND of check_ops."""

    subject: str
    why: str
    hook: str = ""
    files: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    test: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (
            *self.files,
            *(f"{name}(" for name in self.functions),
            *(f"{name} " for name in self.functions),
        )


COMMITS: Final = (
    Commit(
        "ggml-cpu : matrix products from packed blocks for AVX2 and AVX-512",
        "Blocks of both operands are packed once and multiplied in registers, whatever their types.\n"
        "Quantised weights are widened while they are packed, or multiplied as bytes if\n"
        "GGML_PACKED=int8 asks for it. Types and strides that the kernels do not take, and other\n"
        "CPUs, go on in the code that is there.",
        hook="0001-packed-kernels.patch",
        files=(
            "packed-simd.h",
            "packed-blocks.h",
            "packed-exponential.h",
            "packed-int8.h",
            "packed-amx.h",
            "packed-products.cpp",
        ),
        functions=("ggml_packed_mul_mat",),
        test="products",
    ),
    Commit(
        "ggml-cpu : direct convolutions from packed blocks",
        "The windows of a convolution are read while they are packed: no copy of the input is made (im2col).",
        files=("packed-convolution.cpp",),
        functions=("ggml_packed_conv_2d", "ggml_packed_knows_conv_2d"),
        test="convolutions",
    ),
    Commit(
        "ggml-cpu : 3x3 convolutions by Winograd's filtering",
        "Tiles of 4x4 results, 2x2 in small pictures, take a quarter or 1/2.25 of the products\n"
        "(arXiv:1509.09308).",
        files=("packed-winograd.cpp",),
        functions=("ggml_packed_winograd",),
    ),
    Commit(
        "ggml-cpu : flash attention from packed blocks",
        "For heads of any length, of which 40 and 160 are usual in diffusion models.",
        files=("packed-attention.cpp",),
        functions=("ggml_packed_flash_attn",),
        test="attentions",
    ),
    Commit(
        "ggml-cpu : norms, activations and copies in vectors",
        "What lies between products: group norm, GELU, copies that transpose or widen, upscaling,\n"
        "concatenation.",
        files=("packed-rows.cpp",),
        functions=("ggml_packed_rows",),
        test="rows",
    ),
    Commit(
        "ggml-cpu : one value broadcast over a row, in vectors",
        "As the bias of a convolution: the loop had a modulo for each value, of which no compiler makes\n"
        "vectors.",
        hook="0002-broadcast-one-value.patch",
        test="broadcasts",
    ),
)


def git(repository: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(repository), *words], check=True, stdout=subprocess.DEVNULL)


def commit_all(repository: Path, message: str) -> None:
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message", message)


def only(text: str, later: Sequence[str]) -> str:
    """The lines that name nothing of later commits."""
    return "".join(line for line in text.splitlines(keepends=True) if not any(name in line for name in later))


def tests_of(commits: Sequence[Commit]) -> str:
    """What ggml's list of tests gets: one program, and a run of it for each kind of operation."""
    runs = "".join(
        f"    add_test(NAME test-packed-{commit.test} COMMAND $<TARGET_FILE:test-packed> 5 {commit.test})\n"
        for commit in commits
        if commit.test
    )
    return f"\nif (NOT GGML_BACKEND_DL)\n{PROGRAM}{runs}endif()\n"


def bring(repository: Path, commit: Commit) -> None:
    """The hook and the files that are a commit's own, and the test as it is for all of them."""
    if commit.hook:
        hook = HERE / "hooks" / commit.hook
        command = ["patch", "--strip=4", "--fuzz=0", "--batch", "--quiet", f"--input={hook}"]
        subprocess.run(command, cwd=repository, check=True)
    for name in commit.files:
        shutil.copy(KERNELS / name, repository / KERNELS_THERE)
    shutil.copy(CHECKS, repository / TEST_THERE)


def series(ggml: Path, repository: Path) -> None:
    """`ggml` is its folder in the engine's archive, unpacked; the patches go beside `repository`."""
    shutil.copytree(ggml, repository)
    git(repository, "init", "--quiet", "--initial-branch=packed")
    commit_all(repository, "ggml, as the archive of the engine has it")
    there, tests = repository / KERNELS_THERE, repository / TESTS_LIST
    tests_before, sources = tests.read_text(), there / "CMakeLists.txt"
    shared = {there / name: (KERNELS / name).read_text() for name in SHARED}
    for count, commit in enumerate(COMMITS, 1):
        bring(repository, commit)
        shared.setdefault(sources, sources.read_text())  # the first hook has put all files in
        later = [name for each in COMMITS[count:] for name in each.names]
        for path, text in shared.items():
            path.write_text(only(text, later))
        tests.write_text(tests_before + tests_of(COMMITS[:count]))
        commit_all(repository, f"{commit.subject}\n\n{commit.why}")
    patches = ["--output-directory", str(repository.parent)]
    git(repository, "format-patch", "--quiet", "--zero-commit", f"-{len(COMMITS)}", *patches)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="new; gets the repository `ggml` and the patches")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-engine-") as work:
        series(unpacked(fetched(Path(work)), Path(work)) / GGML, folder / "ggml")
    for patch in sorted(folder.glob("*.patch")):
        print(patch)


if __name__ == "__main__":
    main()
