"""What is chosen of a repository: its quantisations, and the parts that go with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.download.targets import to_pull
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import HubTokenMissing, InvalidModelFile, ModelNotFound
from tests.hub import HubServer

KLEIN = "double_stream_modulation_img.lin.weight"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models_dir=tmp_path)


def weights(shapes: Mapping[str, list[int]], kind: str = "F8_E4M3") -> bytes:
    """A safetensors file of one byte for each number."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def flux2(context: int) -> bytes:
    names = ("double_blocks.0.txt_attn.norm.key_norm.scale", "single_blocks.0.norm.key_norm.scale")
    norms = {key: [128] for key in names}
    return weights({KLEIN: [6, 2], "txt_in.weight": [128, context], "img_in.weight": [2, 2], **norms})


def llm(width: int) -> bytes:
    return weights(
        {"model.embed_tokens.weight": [2, width], "model.layers.0.self_attn.q_proj.weight": [2, 2]}
    )


def catalog(hub: HubServer, folder: Path) -> Catalog:
    """Two models of FLUX.2 whose language models differ in width."""
    entries = []
    for name, width in (("small", 20), ("large", 40)):
        sources = {
            "diffusion": hub.add(f"pub/{name}", "m.safetensors", flux2(3 * width)),
            "llm": hub.add(f"pub/{name}-llm", "llm.safetensors", llm(width)),
            "vae": hub.add("pub/vae", "vae.safetensors", b"vae"),
        }
        files = {role: Path(f"{source['repo']}/{source['file']}") for role, source in sources.items()}
        fields = {
            "id": name,
            "family": "flux2",
            "files": files,
            "sources": sources,
            "aliases": (f"pub/{name}",),
        }
        entries.append(Entry.model_validate({**fields, "defaults": {"steps": 7 if name == "small" else 9}}))
    return Catalog(entries, folder)


@pytest.mark.parametrize(("width", "name"), [(20, "small"), (40, "large")])
def test_the_language_model_that_fits(width: int, name: str, hub: HubServer, settings: Settings) -> None:
    """Where the base model is not known, the one whose width the transformer reads."""
    known = catalog(hub, settings.models_dir)
    hub.add("some/finetune", "model.safetensors", flux2(3 * width))
    entry = to_pull(known, "some/finetune", settings).entry
    assert entry.sources["llm"].repo == f"pub/{name}-llm"
    assert entry.sources["vae"].repo == "pub/vae"
    assert entry.defaults.steps == 4


def test_a_base_model_that_the_catalog_knows(hub: HubServer, settings: Settings) -> None:
    """Its parts and its settings are taken."""
    known = catalog(hub, settings.models_dir)
    hub.add("some/finetune", "model.safetensors", flux2(120))
    hub.repos["some/finetune"].tags = ("base_model:pub/large", "base_model:finetune:pub/large")
    target = to_pull(known, "some/finetune", settings)
    assert (target.entry.sources["llm"].repo, target.entry.defaults.steps) == ("pub/large-llm", 9)


def test_quantisations(hub: HubServer, settings: Settings) -> None:
    """Files of a repository by their labels, of two with one label the second by its name; no shards."""
    known = catalog(hub, settings.models_dir)
    for number, name in enumerate(("x-Q4_K_M", "x-Q8_0", "x-fp16", "y-Q8_0")):
        hub.add("some/quants", f"{name}.safetensors", flux2(60) + bytes(number))
    hub.add("some/quants", "x-00001-of-00002.safetensors", flux2(60))
    target = to_pull(known, "some/quants", settings)
    assert [entry.quant for entry in target.new] == ["Q4_K_M", "Q8_0", "F16", "y-Q8_0"]
    assert to_pull(known, "some/quants:q4_k_m", settings).entry.quant == "Q4_K_M"
    with pytest.raises(ModelNotFound, match="there are: Q4_K_M, Q8_0, F16, y-Q8_0"):
        to_pull(known, "some/quants:Q3_K", settings)


def test_a_gated_repository_says_what_to_do(hub: HubServer, settings: Settings) -> None:
    """As a pull of the catalog does."""
    hub.add("some/secret", "x.safetensors", flux2(60))
    hub.repos["some/secret"].gated = True
    with pytest.raises(HubTokenMissing, match=r"https://huggingface\.co/some/secret is gated"):
        to_pull(load_catalog(settings.models_dir), "some/secret", settings)


def test_what_the_engine_cannot_read_is_said(hub: HubServer, settings: Settings) -> None:
    """Scaled FP8 is named before anything of it is fetched."""
    hub.add("some/scaled", "x.safetensors", weights({KLEIN: [2, 2], "scaled_fp8": [2]}))
    with pytest.raises(InvalidModelFile, match="its weights are scaled FP8"):
        to_pull(load_catalog(settings.models_dir), "some/scaled", settings)
