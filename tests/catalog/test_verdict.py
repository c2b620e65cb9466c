"""Room for a model: refusals with numbers, tiles where they are needed."""

from __future__ import annotations

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.verdict import needs_tiling, refusal, verdict_of
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.settings import Settings

ENTRY = Entry.model_validate(
    {
        "id": "sizes",
        "quant": "Q4_0",
        "family": "sd1",
        "files": {"model": "x.gguf"},
        "defaults": {"size": "64x64"},
    }
)


def test_either_memory_will_do() -> None:
    """Nothing is refused that fits into one of main and graphics memory."""
    for free in (Available(4 * 10**9, 10**8), Available(10**9, 5 * 10**9)):
        assert verdict_of(ENTRY, {"model": 10**9}, Settings(), free).fits
    found = verdict_of(ENTRY, {"model": 10**9}, Settings(), Available(10**8, 10**8))
    assert not found.fits
    assert "take" not in str(refusal(ENTRY, found))
    assert "take sizes:Q2_K, which fits" in str(refusal(ENTRY, found, "sizes:Q2_K"))


def test_tiles_are_for_pictures_that_do_not_fit() -> None:
    """A large picture is decoded in tiles when its decoder does not fit beside the loaded model."""
    files = {"model": 10**9}
    assert needs_tiling(ENTRY, files, 1024, 1024, Available(10**9), "CPU")  # type: ignore[arg-type]
    assert not needs_tiling(ENTRY, files, 1024, 1024, Available(10**11), "CPU")  # type: ignore[arg-type]
    assert not needs_tiling(ENTRY, files, 64, 64, Available(10**9), "CPU")  # type: ignore[arg-type]
    on_gpu = Available(10**11, 10**9)
    assert needs_tiling(ENTRY, files, 1024, 1024, on_gpu, "CUDA0")  # type: ignore[arg-type]
