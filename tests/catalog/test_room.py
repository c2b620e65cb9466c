"""Room for a model: the best quantisation that fits, refusals with numbers, tiles where they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.catalog.fit import Available
from gguf_imagegen.catalog.room import choose_quant, needs_tiling, next_best, refusal, verdict_of
from gguf_imagegen.errors import InsufficientMemory
from gguf_imagegen.settings import Settings

NEVER = 10**15  # bytes that no machine has


def catalog_of(folder: Path, **quants: Any) -> Catalog:
    path = folder / "sizes.yaml"
    listed = {name: {"file": f"{name}.gguf", **fields} for name, fields in quants.items()}
    model = {"family": "sd1", "repo": "me/sizes", "defaults": {"size": "64x64"}, "quants": listed}
    path.write_text(yaml.safe_dump({"version": 1, "models": {"sizes": model}}, sort_keys=False))
    return load_catalog(folder, path)


def test_the_best_that_fits_is_taken(tmp_path: Path) -> None:
    """Of those that fit it is the largest, wherever it stands in the list."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000}, Q8_0={"bytes": 2000})
    assert choose_quant(catalog, "sizes", Settings()).quant == "Q8_0"


def test_a_named_one_is_taken(tmp_path: Path) -> None:
    """Who names a quantisation gets it, and nothing is measured where the check is off."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000})
    assert choose_quant(catalog, "sizes:F16", Settings()).quant == "F16"
    assert choose_quant(catalog, "sizes", Settings(memory_check=False)).quant == "F16"


def test_what_is_here_is_taken(tmp_path: Path) -> None:
    """A quantisation on disk goes before a better one that is not."""
    catalog = catalog_of(tmp_path, Q8_0={"bytes": 2000}, Q4_0={"bytes": 1000})
    file = tmp_path / "me" / "sizes" / "Q4_0.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert choose_quant(catalog, "sizes", Settings()).quant == "Q4_0"


def test_unknown_sizes_mean_the_first(tmp_path: Path) -> None:
    """Where no source states sizes nothing can be told, and the catalog's order decides."""
    assert choose_quant(catalog_of(tmp_path, Q5_0={}, Q4_0={}), "sizes", Settings()).quant == "Q5_0"


def test_sizes_are_asked_for_where_none_are_stated(tmp_path: Path) -> None:
    """What the catalog does not know the hub does; the entry that is pulled is the catalog's own."""
    catalog = catalog_of(tmp_path, F16={}, Q8_0={}, Q4_0={"bytes": 1000})
    there = {"F16.gguf": NEVER, "Q8_0.gguf": 2000}
    asked: list[str] = []

    def sizes_of(sources: Iterable[Source]) -> dict[Path, int]:
        asked.extend(source.file for source in sources)
        return {Path("me/sizes") / name: there[name] for name in asked}

    chosen = choose_quant(catalog, "sizes", Settings(), sizes_of)
    assert (chosen.quant, chosen.sources["model"].bytes, asked) == ("Q8_0", None, ["F16.gguf", "Q8_0.gguf"])


def test_none_fits(tmp_path: Path) -> None:
    """The refusal has the smallest one's numbers and says what can be done."""
    catalog = catalog_of(tmp_path, F16={"bytes": 2 * NEVER}, Q4_0={"bytes": NEVER})
    words = r"'sizes:Q4_0' needs about 1000000\.\d GB of memory for 64x64 .* are free: .*--no-memory-check"
    with pytest.raises(InsufficientMemory, match=words):
        choose_quant(catalog, "sizes", Settings())


def test_the_next_best_is_named(tmp_path: Path) -> None:
    """For a quantisation that does not fit, the best of the others that does is known."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000}, Q8_0={"bytes": 2000})
    free = Available(10**10)
    assert next_best(catalog, catalog.get("sizes:F16"), Settings(), free) == "Q8_0"
    assert next_best(catalog, catalog.get("sizes:F16"), Settings(), Available(10)) is None


def test_either_memory_will_do(tmp_path: Path) -> None:
    """Nothing is refused that fits into one of main and graphics memory."""
    entry = catalog_of(tmp_path, Q4_0={"bytes": 10**9}).get("sizes")
    for free in (Available(4 * 10**9, 10**8), Available(10**9, 4 * 10**9)):
        assert verdict_of(entry, {"model": 10**9}, Settings(), free).fits
    found = verdict_of(entry, {"model": 10**9}, Settings(), Available(10**8, 10**8))
    assert not found.fits
    assert "take sizes:Q2_K" in str(refusal(entry, found, "Q2_K"))


def test_tiles_are_for_pictures_that_do_not_fit(tmp_path: Path) -> None:
    """A large picture is decoded in tiles when its decoder does not fit beside the loaded model."""
    entry = catalog_of(tmp_path, Q4_0={"bytes": 10**9}).get("sizes")
    files = {"model": 10**9}
    assert needs_tiling(entry, files, 1024, 1024, Available(10**9), "CPU")  # type: ignore[arg-type]
    assert not needs_tiling(entry, files, 1024, 1024, Available(10**11), "CPU")  # type: ignore[arg-type]
    assert not needs_tiling(entry, files, 64, 64, Available(10**9), "CPU")  # type: ignore[arg-type]
    on_gpu = Available(10**11, 10**9)
    assert needs_tiling(entry, files, 1024, 1024, on_gpu, "CUDA0")  # type: ignore[arg-type]
