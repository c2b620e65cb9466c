"""The catalog: what is shipped, what a file of one's own changes, and bare model files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.catalog.catalog import entry_of_file, load_catalog
from gguf_imagegen.catalog.parse import CatalogError
from gguf_imagegen.modelfiles.traits import traits_of
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import (
    ImagegenError,
    InvalidModelFile,
    MissingComponent,
    ModelNotDownloaded,
    ModelNotFound,
)


def text(**models: Any) -> str:
    return yaml.safe_dump({"version": 1, "models": models})


def model(**fields: Any) -> dict[str, Any]:
    return {"family": "flux", "files": {"diffusion": "flux.gguf"}, **fields}


@pytest.fixture
def files(model_dir: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the tiny model under the name x."""
    shutil.copy(model_dir / "tiny-random.gguf", tmp_path / "x.gguf")
    shutil.copy(model_dir / "tiny-random-tae.gguf", tmp_path / "x-tae.gguf")
    return tmp_path


def test_names_and_aliases(model_dir: Path) -> None:
    """An entry is found by id and by alias; an unknown name is answered with the known ones."""
    catalog = load_catalog(model_dir)
    assert catalog.get("tiny-random") is catalog.get("test")
    with pytest.raises(
        ModelNotFound, match=r"no model 'nope'; Models on this machine: .*tiny-random"
    ) as caught:
        catalog.get("nope")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFound, match=r"no model 'sd-tubro'; did you mean .*sd-turbo.*\?"):
        catalog.get("sd-tubro")
    with pytest.raises(ModelNotFound, match=r"'realesrgan-x4'; did you mean .*realesrgan-x4plus"):
        catalog.get("realesrgan-x4")
    with pytest.raises(ModelNotFound, match=r"'taesd' is a component.*gguf-imagegen pull taesd"):
        catalog.get("taesd")


def test_an_extra_file_adds_and_overrides(tmp_path: Path) -> None:
    """Entries of one's own file are added; one of a shipped id replaces the shipped one."""
    extra = tmp_path / "mine.yaml"
    extra.write_text(text(mine=model(aliases=["my-flux"]), **{"tiny-random": model(description="mine")}))
    catalog = load_catalog(tmp_path, extra)
    assert catalog.get("my-flux").id == "mine"
    assert catalog.get("tiny-random").description == "mine"
    assert {entry.id for entry in load_catalog(tmp_path).entries} < {entry.id for entry in catalog.entries}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (text(a=model(colour="red")), "mine.yaml: a: colour: "),
        (text(a=model(defaults={"stesp": 5})), "mine.yaml: a: defaults.stesp: "),
        (text(a=model(defaults={"steps": 0})), "mine.yaml: a: defaults.steps: "),
        (text(a=model(files={"unet": "x"})), "mine.yaml: a: files.unet"),
        (text(a=model(quality={"best": 5})), "mine.yaml: a: quality.best"),
        (text(a=model(family="sd9")), "'sd9' is not one this server can run"),
        (text(a={"family": "flux"}), "mine.yaml: a: files: "),
        (
            text(a={"family": "sd1", "quants": {"Q8": {"file": "x.gguf", "bytes": 5}}}),
            "mine.yaml: a: quants.Q8: repo is missing; say which repository",
        ),
        (text(a={"family": "sd1", "quants": {"Q8": {}}}), "mine.yaml: a: quants.Q8: repo is missing"),
        (
            text(a=model(family="sdxl-pix2pix", limits={"references": 2})),
            "limits.references: sdxl-pix2pix takes at most 1",
        ),
        (text(**{"a b": model()}), "mine.yaml: a b: id: "),
        (text(a=5), "mine.yaml: models.a: "),
        ("version: 2\nmodels: {}", "mine.yaml: version: "),
        ("version: 1\nmodels: {}\nmore: 1", "mine.yaml: more: "),
        ("[]", "mine.yaml: entry: "),
        ("", "mine.yaml: entry: "),
        ("a: [", "mine.yaml: not valid YAML: "),
        (
            text(a=model(aliases=["x"]), b=model(aliases=["x"])),
            "mine.yaml: x: aliases: this name is used twice",
        ),
        (text(a=model(aliases=["b"]), b=model()), "mine.yaml: b: aliases: this name is used twice"),
    ],
    ids=lambda value: value[:50],
)
def test_a_wrong_file_says_where(content: str, words: str, tmp_path: Path) -> None:
    """File, entry and field are named, and no folder."""
    extra = tmp_path / "mine.yaml"
    extra.write_text(content)
    with pytest.raises(CatalogError) as caught:
        load_catalog(tmp_path, extra)
    assert words in str(caught.value)
    assert str(caught.value).startswith("mine.yaml: ")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """No such file, a folder, or no UTF-8: words, not a traceback."""
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("absent.yaml", "folder.yaml", "latin.yaml"):
        with pytest.raises(CatalogError, match=f"^{name}: cannot be read"):
            load_catalog(tmp_path, tmp_path / name)


def test_a_model_that_is_not_here_says_where_to_get_it(tmp_path: Path) -> None:
    """Missing files are named by their bare names, with the source."""
    catalog = load_catalog(tmp_path)
    entry = catalog.get("tiny-random")
    assert not catalog.on_disk(entry)
    with pytest.raises(ModelNotDownloaded) as caught:
        catalog.checked_files(entry)
    message = str(caught.value)
    assert "tiny-random.gguf, tiny-random-tae.gguf" in message
    assert "make-test-model" in message
    assert str(tmp_path) not in message


def test_the_words_name_a_quantisation_only_if_they_must(tmp_path: Path) -> None:
    """Who asked for an id is told to pull the id, and gets the best; another quantisation is named."""
    catalog = load_catalog(tmp_path)
    for name, words in (("sd-1.5", "pull sd-1.5$"), ("sd-1.5:Q4_1", "pull sd-1.5:Q4_1$")):
        with pytest.raises(ModelNotDownloaded, match=words):
            catalog.require_on_disk(catalog.get(name))


def test_quantisations_may_be_files_of_ones_own(files: Path) -> None:
    """A quantisation that is only a file name lies in the models folder."""
    quants = {"Q8": {"file": "x.gguf"}, "Q4": {"file": "absent.gguf"}}
    extra = files / "mine.yaml"
    extra.write_text(text(mine={"family": "ovis-image", "quants": quants, "files": {"taesd": "x-tae.gguf"}}))
    catalog = load_catalog(files, extra)
    assert catalog.get("mine").name == "mine:Q8"
    assert set(catalog.checked_files(catalog.get("mine"))) == {"model", "taesd"}
    assert not catalog.on_disk(catalog.get("mine:Q4"))


@pytest.mark.parametrize(("family", "count"), [("sd1-pix2pix", 1), ("sdxl-pix2pix", 1), ("flux2", 16)])
def test_a_model_takes_as_many_references_as_its_family(family: str, count: int, tmp_path: Path) -> None:
    """Where the entry says nothing, or gives other limits only."""
    extra = tmp_path / "mine.yaml"
    plain, limited = model(family=family), model(family=family, limits={"max_steps": 5})
    extra.write_text(text(a=plain, b=limited))
    catalog = load_catalog(tmp_path, extra)
    assert [Bounds.of(catalog.get(name), Settings()).images for name in "ab"] == [count, count]
    assert catalog.get("b").limits.max_steps == 5


def test_a_model_on_disk_is_checked(model_dir: Path) -> None:
    """The files of a whole model are read and found complete."""
    catalog = load_catalog(model_dir)
    entry = catalog.get("tiny-random")
    assert catalog.on_disk(entry)
    headers = catalog.checked_files(entry)
    assert {role: header.name for role, header in headers.items()} == {
        "model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf",
    }  # fmt: skip


def test_a_bare_file_takes_its_siblings(files: Path) -> None:
    """A component whose name starts with the model's own is found; the rest is from the header."""
    (files / "other-tae.gguf").write_bytes(b"not looked at")
    entry = entry_of_file(files / "x.gguf")
    traits = traits_of("ovis-image")
    assert traits is not None
    assert (entry.id, entry.family) == ("x", "ovis-image")
    assert {role: path.name for role, path in entry.files.items()} == {
        "model": "x.gguf",
        "taesd": "x-tae.gguf",
    }
    assert entry.defaults.steps == traits.defaults["steps"]


def test_a_bare_file_takes_named_components(files: Path) -> None:
    """A component that is named may lie anywhere and have any name."""
    other = files / "elsewhere" / "decoder.gguf"
    other.parent.mkdir()
    (files / "x-tae.gguf").rename(other)
    assert entry_of_file(files / "x.gguf", {"taesd": other}).files["taesd"] == other.resolve()


def test_a_missing_component_is_named(files: Path) -> None:
    """Without a decoder the words say what is missing and which flag gives it."""
    (files / "x-tae.gguf").unlink()
    with pytest.raises(MissingComponent, match=r"lacks an image decoder \(VAE\).*--component vae=FILE"):
        entry_of_file(files / "x.gguf")
    with pytest.raises(MissingComponent, match=r"^gone\.gguf: no such file"):
        entry_of_file(files / "x.gguf", {"vae": files / "gone.gguf"})


def test_no_model_is_refused_in_words(files: Path) -> None:
    """A component given as the model, a wrong suffix, a missing file: one sentence each, no folder."""
    (files / "x.txt").write_text("x")
    (files / "x.gguf").write_bytes((files / "x.gguf").read_bytes()[:5000])
    for name, words in (
        ("x-tae.gguf", "this is a taesd file, not a diffusion model"),
        ("x.txt", "neither a GGUF nor a safetensors file"),
        ("gone.gguf", "no such model file"),
        ("x.gguf", "cut short"),
    ):
        with pytest.raises(InvalidModelFile, match=words) as caught:
            entry_of_file(files / name)
        assert str(caught.value).startswith(f"{name}: ")
        assert str(files) not in str(caught.value)


def test_odd_file_names(files: Path) -> None:
    """Brackets, spaces and other scripts in a file's name neither break the search nor the id."""
    for stem, model_id in (("a [1] b*", "a-1-b-"), ("模型", "model"), (".dots", "dots")):
        shutil.copy(files / "x.gguf", files / f"{stem}.gguf")
        shutil.copy(files / "x-tae.gguf", files / f"{stem}-tae.gguf")
        entry = entry_of_file(files / f"{stem}.gguf")
        assert (entry.id, len(entry.files)) == (model_id, 2)


def test_a_known_file_keeps_its_catalog_defaults(model_dir: Path) -> None:
    """A bare file that the catalog knows by name is served with the catalog's defaults and limits."""
    catalog, entry = load_catalog(model_dir).with_file(entry_of_file(model_dir / "tiny-random.gguf"))
    assert entry.id == "tiny-random"
    assert entry.defaults == load_catalog(model_dir).get("test").defaults
    assert entry.files["model"].is_absolute()
    assert catalog.get("test") is entry


def test_an_unknown_file_is_added(files: Path) -> None:
    """Any other bare file becomes an entry of its own."""
    catalog, entry = load_catalog(files).with_file(entry_of_file(files / "x.gguf"))
    assert catalog.get("x") is entry
    assert catalog.on_disk(entry)


def test_no_folder_is_ever_named(files: Path) -> None:
    """Errors on files go to clients: whatever is wrong with them, the folder stays untold."""
    for content in (b"", b"GGUF", b"GGUF" + bytes(100), b"x" * 100):
        (files / "x-tae.gguf").write_bytes(content)
        with pytest.raises(ImagegenError) as caught:
            entry_of_file(files / "x.gguf")
        assert str(files) not in str(caught.value.body())
