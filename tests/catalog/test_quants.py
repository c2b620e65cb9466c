"""What is known of the models at one moment: states, memory, and the quantisation to take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.catalog.quants import Quant, Survey, best_of, choose_quant
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InsufficientMemory

NEVER = 10**15  # bytes that no machine has
MEMORY = Available(4 * 10**9)


def catalog_of(folder: Path, **quants: Any) -> Catalog:
    path = folder / "sizes.yaml"
    listed = {name: {"file": f"{name}.gguf", **fields} for name, fields in quants.items()}
    model = {"family": "sd1", "repo": "me/sizes", "defaults": {"size": "64x64"}, "quants": listed}
    path.write_text(yaml.safe_dump({"version": 1, "models": {"sizes": model}}, sort_keys=False))
    return load_catalog(folder, path)


def best(catalog: Catalog, free: Available = MEMORY) -> Quant:
    return best_of(Survey(catalog, Settings(), free).quants("sizes"))


def test_the_best_that_fits_is_taken(tmp_path: Path) -> None:
    """Of those that fit it is the largest, wherever it stands in the list."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000}, Q8_0={"bytes": 2000})
    assert choose_quant(catalog, "sizes", Settings()).quant == "Q8_0"


def test_a_named_one_is_taken(tmp_path: Path) -> None:
    """Who names a quantisation gets it if it fits, and nothing is measured where the check is off."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000})
    assert choose_quant(catalog, "sizes:Q4_0", Settings()).quant == "Q4_0"
    assert choose_quant(catalog, "sizes", Settings(memory_check=False)).quant == "F16"
    assert choose_quant(catalog, "sizes:F16", Settings(memory_check=False)).quant == "F16"
    words = r"'sizes:F16' needs about 1000000\.\d GB .*: take sizes:Q4_0, which fits, .*--no-memory-check"
    with pytest.raises(InsufficientMemory, match=words):
        choose_quant(catalog, "sizes:F16", Settings())


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
    words = r"'sizes:Q4_0' needs about 1000000\.\d GB of memory for 64x64 .* may be used: .*--no-memory-check"
    with pytest.raises(InsufficientMemory, match=words):
        choose_quant(catalog, "sizes", Settings())


def test_a_gated_one_is_the_last_resort(tmp_path: Path) -> None:
    """A larger one that is gated is passed over, and taken only where nothing else fits."""
    gated = {"bytes": 2 * 10**9, "gated": True}
    assert best(catalog_of(tmp_path, Q4_0={"bytes": 10**9}, F16=gated)).name == "sizes:Q4_0"
    assert best(catalog_of(tmp_path, Q4_0={}, F16=gated)).name == "sizes:Q4_0"
    assert best(catalog_of(tmp_path, Q4_0={"bytes": NEVER}, F16=gated)).name == "sizes:F16"
    assert best(catalog_of(tmp_path, Q4_0={"bytes": NEVER}, F16={**gated, "bytes": NEVER})).fits is False


def test_sizes_that_are_not_known_do_not_hide_that_nothing_fits(tmp_path: Path) -> None:
    """The smallest known one is told, as `pull` would refuse it."""
    found = best(catalog_of(tmp_path, Q8_0={"bytes": 2 * NEVER}, Q5_0={}, Q2_K={"bytes": NEVER}))
    assert (found.name, found.fits) == ("sizes:Q2_K", False)


def test_one_rule_and_its_numbers(tmp_path: Path) -> None:
    """What fits in the list is what is chosen, at the very edge; the refusal tells the part that counts."""
    catalog = catalog_of(tmp_path, Q8_0={"bytes": 3 * 10**9}, Q4_0={"bytes": 10**9})
    settings = Settings(kernels="off")  # which need less where memory is short
    needs = {q.name: q.memory.needs for q in Survey(catalog, settings, MEMORY).quants("sizes") if q.memory}
    edge = needs["sizes:Q8_0"] * 10 // 9
    assert best(catalog, Available(edge + 10)).name == "sizes:Q8_0"
    short = Survey(catalog, settings, Available(edge - 10))
    q8, q4 = short.quants("sizes")
    assert (q8.fits, q4.fits) == (False, True)
    assert q8.memory is not None
    assert q8.memory.usable < q8.memory.needs < q8.memory.free
    with pytest.raises(InsufficientMemory, match=r"of the .* that are free may be used: take sizes:Q4_0"):
        short.refuse(catalog.get("sizes:Q8_0"))


def test_the_next_best_is_named(tmp_path: Path) -> None:
    """Another quantisation of the model, else the largest other model that does the same work, else none."""
    catalog = catalog_of(tmp_path, F16={"bytes": NEVER}, Q4_0={"bytes": 1000}, Q8_0={"bytes": 2000})
    assert Survey(catalog, Settings(), MEMORY).next_best(catalog.get("sizes:F16")) == "sizes:Q8_0"
    alone = catalog_of(tmp_path, F16={"bytes": NEVER})
    found = Survey(alone, Settings(), MEMORY).next_best(alone.get("sizes:F16"))
    assert found is not None
    other = alone.get(found)
    assert other.id != "sizes"
    assert "text-to-image" in other.capabilities
    assert Survey(alone, Settings(), MEMORY).quant(other).fits
    assert Survey(alone, Settings(), Available(10)).next_best(alone.get("sizes:F16")) is None


def test_bytes_to_come_leave_out_what_is_here(tmp_path: Path) -> None:
    """Components that another model brought count as here; a whole model has nothing to come."""
    catalog = load_catalog(tmp_path)
    entry = catalog.get("chroma1-hd")
    vae = entry.sources["vae"]
    whole = sum(source.bytes or 0 for source in entry.sources.values())
    assert Survey(catalog, Settings(), MEMORY).quant(entry).download_bytes == whole
    path = tmp_path / vae.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1000)
    found = Survey(catalog, Settings(), MEMORY).quant(entry)
    assert (found.bytes, found.download_bytes) == (whole - (vae.bytes or 0) + 1000, whole - (vae.bytes or 0))


def test_states(tmp_path: Path) -> None:
    """From nothing over a part to the whole, and what is wrong; each of one quantisation."""
    catalog = catalog_of(tmp_path, Q8_0={"bytes": 10}, Q4_0={"bytes": 5})
    store, source = Store(tmp_path), catalog.get("sizes:Q8_0").sources["model"]

    def states() -> list[str]:
        return [quant.state for quant in Survey(catalog, Settings(), MEMORY).quants("sizes")]

    assert states() == ["absent", "absent"]
    partial = store.make_room_for(store.beside(source.path, f"{'ab' * 8}.partial"))
    partial.write_bytes(b"12345")
    assert states() == ["partial", "absent"]
    file = store.make_room_for(store.path(source.path))
    file.write_bytes(b"1234567890")
    assert states() == ["ready", "absent"]
    file.write_bytes(b"123")
    assert states() == ["corrupt", "absent"]
    file.unlink()
    partial.unlink()
    store.beside(source.path, "corrupt").write_bytes(b"1234567890")
    assert states() == ["corrupt", "absent"]
