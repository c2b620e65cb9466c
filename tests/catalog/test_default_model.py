"""The default model and its components, from the settings to the files that the engine loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from gguf_imagegen.catalog.default_model import catalog_for, choose_models
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidRequest, MissingComponent


@pytest.fixture
def two(model_dir: Path, tmp_path: Path) -> Settings:
    """A catalog of a model in two quantisations, both in the models folder."""
    for name in ("q8.gguf", "q4.gguf"):
        shutil.copy(model_dir / "tiny-random.gguf", tmp_path / name)
    shutil.copy(model_dir / "tiny-random-tae.gguf", tmp_path / "tae.gguf")
    entry = {
        "family": "ovis-image", "files": {"taesd": "tae.gguf"},
        "quants": {"Q8_0": {"file": "q8.gguf"}, "Q4_0": {"file": "q4.gguf"}},
    }  # fmt: skip
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "models": {"two": entry}}, sort_keys=False))
    return Settings(models_dir=tmp_path, catalog=path, model="two")


def test_a_named_quantisation_is_the_default(two: Settings) -> None:
    """Also where another one is on disk, and stands before it."""
    for name, file in (("two", "q8.gguf"), ("two:Q4_0", "q4.gguf"), ("two:Q8_0", "q8.gguf")):
        catalog, default = choose_models(two.model_copy(update={"model": name}))
        assert default == name
        assert catalog.paths(catalog.get(default))["model"].name == file


def test_a_component_takes_the_place_of_the_catalogs(two: Settings, model_dir: Path) -> None:
    """In every quantisation, with no word on where it would be pulled from; other models keep theirs."""
    mine = model_dir / "tiny-random-tae.gguf"
    chosen = two.model_copy(update={"component": (f"taesd={mine}",)})
    catalog, _ = choose_models(chosen)
    for name in ("two", "two:Q4_0"):
        assert catalog.paths(catalog.get(name))["taesd"] == mine
    assert catalog.get("test").files["taesd"] == Path("tiny-random-tae.gguf")
    pulled = catalog_for(two.model_copy(update={"model": "sd-1.5", "component": (f"vae={mine}",)}))
    assert {
        e.sources.keys() & {"model", "vae", "taesd"} == {"model", "taesd"} for e in pulled.quants("sd-1.5")
    }
    assert "vae" in pulled.get("sd-1.5").files


def test_a_component_is_added(two: Settings, tmp_path: Path) -> None:
    """A role that the entry does not have: a ControlNet, say."""
    net = tmp_path / "net.gguf"
    shutil.copy(tmp_path / "tae.gguf", net)
    catalog, name = choose_models(two.model_copy(update={"component": (f"control_net={net}",)}))
    assert catalog.get(name).files["control_net"] == net


@pytest.mark.parametrize(
    ("word", "error", "words"),
    [
        ("unet=x.gguf", InvalidRequest, "'unet=x.gguf' is not ROLE=FILE with a role of model, diffusion"),
        ("vae", InvalidRequest, "is not ROLE=FILE"),
        ("vae=absent.gguf", MissingComponent, "vae=absent.gguf: no such file"),
        ("diffusion=x.gguf", InvalidRequest, "give that file with --model FILE"),
    ],
)
def test_wrong_components_are_refused(
    two: Settings, word: str, error: type[ImagegenError], words: str
) -> None:
    """An unknown role, a file that is not there, and one that is no component."""
    with pytest.raises(error, match=words):
        choose_models(two.model_copy(update={"component": (word,)}))
