"""A tiny decoder beside a VAE: fetched with the model, which runs without it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import yaml

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file, load_catalog
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.download.targets import to_remove
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.modelfiles.inspect import DIFFUSION
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import MissingComponent

WHOLE = [
    f"{DIFFUSION}input_blocks.0.0.weight", "cond_stage_model.x.weight", "first_stage_model.decoder.x.weight",
]  # fmt: skip
TAE = ["decoder.layers.0.weight"]


def write(path: Path, names: list[str]) -> None:
    """A GGUF of holes with tensors of 32 numbers of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(names), 0))
        for number, name in enumerate(names):
            file.write(struct.pack("<Q", len(name)) + name.encode())
            file.write(struct.pack("<IQIQ", 1, 32, 0, 128 * number))
        file.truncate(file.tell() + 128 * len(names) + 32)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A whole SD 1 model, on disk but for its TAESD."""
    entry = {
        "family": "sd1", "repo": "me/one", "quants": {"Q8_0": {"file": "one.gguf"}},
        "vae_inside": True, "files": {"taesd": {"repo": "me/tae", "file": "tae.gguf"}},
    }  # fmt: skip
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "models": {"one": entry}}))
    write(tmp_path / "me/one/one.gguf", WHOLE)
    return load_catalog(tmp_path, path)


def test_a_model_runs_without_it(catalog: Catalog, tmp_path: Path) -> None:
    """It counts as on disk, only its own decoder is offered, and a pull has the rest to fetch."""
    entry = catalog.get("one")
    assert catalog.on_disk(entry)
    assert set(catalog.checked_files(entry)) == set(entry.files) == {"model"}
    assert entry.decoders == ("full",)
    assert set(entry.sources) == {"model", "taesd"}
    quant = Survey(catalog, Settings(), Available(10**10)).quant(entry)
    assert (quant.on_disk, quant.state, quant.download_bytes) == (True, "ready", 0)


def test_it_is_offered_once_it_is_here(catalog: Catalog, tmp_path: Path) -> None:
    """Both decoders then, the full one first; the VAE within the model's file counts."""
    write(tmp_path / "me/tae/tae.gguf", TAE)
    entry = catalog.get("one:Q8_0")
    assert set(catalog.checked_files(entry)) == {"model", "taesd"}
    assert (entry.decoder, entry.decoders) == ("full", ("full", "tiny"))
    wanted, notes = parse_request({"prompt": "x", "decoder": "tiny"})
    assert plan(wanted, entry, Settings(), "generation", notes).entry.decoder == "tiny"
    removal = Store(tmp_path).remove(*to_remove(catalog, "one"))
    assert set(removal.removed) == {"me/one/one.gguf", "me/tae/tae.gguf"}


def test_memory_counts_it(catalog: Catalog, tmp_path: Path) -> None:
    """The same model needs the tiny decoder's bytes more."""
    before = Survey(catalog, Settings(), Available(10**10)).quant(catalog.get("one")).memory
    write(tmp_path / "me/tae/tae.gguf", [f"decoder.layers.{number}.weight" for number in range(5000)])
    after = Survey(catalog, Settings(), Available(10**10)).quant(catalog.get("one")).memory
    assert before is not None
    assert after is not None
    assert after.needs - before.needs == 5000 * 32 * 4


def test_a_vae_that_is_not_inside_is_missed(catalog: Catalog, tmp_path: Path) -> None:
    """The catalog's word is held against the file's header, and a VAE of one's own mends it."""
    write(tmp_path / "me/one/one.gguf", WHOLE[:2])
    write(tmp_path / "me/tae/tae.gguf", TAE)
    with pytest.raises(MissingComponent, match=r"one.gguf: .*a VAE is inside, and there is none; .*vae=FILE"):
        catalog.checked_files(catalog.get("one"))
    write(tmp_path / "vae.gguf", ["decoder.conv_in.weight"])
    mended = catalog.with_components("one", {"vae": tmp_path / "vae.gguf"})
    assert set(mended.checked_files(mended.get("one"))) == {"model", "taesd", "vae"}


def test_a_file_of_ones_own_is_asked_itself(tmp_path: Path) -> None:
    """Whether a bare file holds a VAE is read from its header."""
    write(tmp_path / "own.gguf", WHOLE)
    write(tmp_path / "own-tae.gguf", TAE)
    assert entry_of_file(tmp_path / "own.gguf").decoders == ("full", "tiny")
    write(tmp_path / "own.gguf", WHOLE[:2])
    assert entry_of_file(tmp_path / "own.gguf").decoders == ("full",)
