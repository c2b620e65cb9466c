"""The catalog that is shipped: every model it should know, and nothing in it that contradicts itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_imagegen.catalog.catalog import Catalog, builtin_text
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.parse import parse_catalog
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.inspect import check_complete
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import UnsupportedOperation

ENTRIES, COMPONENTS = parse_catalog(builtin_text(), "model_catalog.yaml")
RUNNABLE = [entry for entry in ENTRIES if not entry.unsupported]
UNQUANTISED = ("FP16", "F16", "BF16", "F32")

GPUSTACK = (
    "stable-diffusion-v3-5-large-turbo", "stable-diffusion-v3-5-large", "stable-diffusion-v3-5-medium",
    "stable-diffusion-v3-medium", "FLUX.1-mini", "FLUX.1-lite", "FLUX.1-dev", "FLUX.1-schnell",
    "FLUX.1-Fill-dev", "stable-diffusion-xl-1.0-turbo", "stable-diffusion-xl-refiner-1.0",
    "stable-diffusion-xl-base-1.0", "stable-diffusion-xl-inpainting-1.0", "stable-diffusion-v2-1-turbo",
    "stable-diffusion-v2-1", "stable-diffusion-v1-5", "stable-diffusion-v1-5-inpainting",
    "stable-diffusion-v1-4",
)  # fmt: skip
XINFERENCE = (
    "sd-turbo", "sdxl-turbo", "sd-v1.5", "stable-diffusion-v1.5", "sdxl-base",
    "stable-diffusion-xl-base-1.0", "sd3-medium", "FLUX.1-schnell", "FLUX.1-dev",
)  # fmt: skip
VLLM_OMNI = (
    "Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511",
    "Tongyi-MAI/Z-Image-Turbo",
)  # fmt: skip
TODAY = (
    "flux.1-dev", "flux.1-schnell", "flux.1-kontext-dev", "flux.2-klein-4b", "chroma1-hd", "ovis-image",
    "qwen-image", "z-image-turbo", "z-image", "sdxl", "sdxl-lightning", "sdxs-512",
)  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(ENTRIES, tmp_path_factory.mktemp("none-here"))


def sources() -> Iterator[Source]:
    """Every file that the catalog says how to get, some more than once."""
    yield from COMPONENTS.values()
    for entry in ENTRIES:
        yield from entry.sources.values()


def test_who_states_a_limit_of_steps() -> None:
    """All others make as many as the server allows."""
    limits = {entry.id: entry.limits.max_steps for entry in RUNNABLE if entry.limits.max_steps}
    assert limits == {"sdxs-512": 1, "z-image-turbo": 16}


def test_the_shipped_catalog_is_sound() -> None:
    """Every entry loads, names samplers and schedules that exist, and its defaults keep its own limits."""
    assert "tiny-random" in {entry.id for entry in ENTRIES}
    for entry in ENTRIES:
        assert entry.description
        assert entry.source
        assert entry.licence != "unknown"
    for entry in RUNNABLE:
        defaults, bounds = entry.defaults, Bounds.of(entry, Settings())
        assert defaults.sampler in ABILITIES.samplers
        assert defaults.schedule in ABILITIES.schedules
        assert max(defaults.size) <= bounds.side
        assert defaults.size[0] * defaults.size[1] <= bounds.pixels
        assert all(side % entry.traits.multiple == 0 for side in defaults.size)
        assert all(steps <= bounds.steps for steps in (defaults.steps, *entry.quality.values()))
        assert list(entry.quality.values()) == sorted(entry.quality.values())
        assert entry.files
        for role, path in entry.files.items():
            assert path == (entry.sources[role].path if role in entry.sources else Path(path.name))


@pytest.mark.parametrize("name", sorted({*GPUSTACK, *XINFERENCE, *VLLM_OMNI, *TODAY}))
def test_models_are_found_by_the_names_people_know(name: str, catalog: Catalog) -> None:
    """What GPUStack, Xinference and vLLM-Omni serve under a name is found here under the same one."""
    assert catalog.get(name).description


@pytest.mark.parametrize("name", GPUSTACK)
def test_gpustacks_own_files_are_found_by_their_repository(name: str, catalog: Catalog) -> None:
    """Its repository is a name too, and leads to its files; what cannot run leads to none."""
    entry = catalog.get(f"gpustack/{name}-GGUF")
    repositories = {source.repo for source in entry.sources.values()}
    assert f"gpustack/{name}-GGUF" in repositories or entry.unsupported


def test_what_cannot_run_says_so(catalog: Catalog) -> None:
    """An entry without files is there to answer, not to be pulled."""
    refused = [entry for entry in ENTRIES if entry.unsupported]
    assert [entry.id for entry in refused] == ["sdxl-refiner"]
    for entry in refused:
        assert not entry.files
        with pytest.raises(UnsupportedOperation, match=r"sdxl-refiner.*refiner's architecture"):
            catalog.require_on_disk(entry)


def test_a_file_is_described_in_one_way() -> None:
    """One file of the hub has one size, hash, revision and form wherever it is named."""
    known: dict[Path, Source] = {}
    for source in sources():
        first = known.setdefault(source.path, source)
        assert (first.repo, first.file, first.bytes, first.sha256, first.revision) == (
            source.repo, source.file, source.bytes, source.sha256, source.revision,
        )  # fmt: skip


def test_a_hash_is_of_one_size() -> None:
    """Equal hashes are equal files."""
    sizes: dict[str, set[int]] = {}
    for source in sources():
        if source.sha256 and source.bytes:
            sizes.setdefault(source.sha256, set()).add(source.bytes)
    assert sizes
    assert all(len(size) == 1 for size in sizes.values())


def test_files_are_shared_by_name() -> None:
    """No two components are one file, and a model's further files are components."""
    components = list(COMPONENTS.values())
    assert len({source.path for source in components}) == len(components)
    for entry in ENTRIES:
        further = [source for role, source in entry.sources.items() if role not in ("model", "diffusion")]
        assert all(source in components for source in further)


@pytest.mark.parametrize(
    "entry", [e for e in RUNNABLE if "diffusion" in e.files], ids=lambda entry: str(entry.name)
)
def test_a_bare_transformer_has_all_its_parts(entry: Entry) -> None:
    """Whatever the files hold, their roles alone are a whole set: the transformer's file brings nothing."""
    check_complete(
        entry.family, {role: Header(path.name, "gguf", {}, 0) for role, path in entry.files.items()}
    )


TINY = {
    "sd1": "taesd", "sd2": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1", "chroma": "taef1",
    "z-image": "taef1", "ovis-image": "taef1",
}  # fmt: skip


@pytest.mark.parametrize("entry", [e for e in RUNNABLE if e.sources], ids=lambda entry: str(entry.name))
def test_every_model_has_its_familys_tiny_decoder(entry: Entry) -> None:
    """Where there is one: it is beside a VAE, and no model needs it to run; SDXS has its own inside."""
    family = entry.family.removesuffix("-inpaint").removesuffix("-fill")
    if family in ("flux2", "qwen-image") or entry.id == "sdxs-512":
        assert entry.decoders == ("full",)
        return
    assert entry.sources["taesd"] == COMPONENTS[TINY[family]]
    assert entry.decoders == ("full", "tiny")
    assert "taesd" not in entry.required
    assert entry.vae_inside != ("vae" in entry.files)


def test_text_encoders_are_where_sdcpp_reads_them() -> None:
    """A checkpoint of SD3 or FLUX brings its encoders under other names, or apart.

    The one exception has CLIP inside as sd.cpp names it.
    """
    for entry in RUNNABLE:
        if entry.family not in ("sd3", "flux", "flux-fill") or "diffusion" in entry.files:
            continue
        main = entry.sources["model"]
        apart = {"clip_l", "t5xxl"} <= set(entry.files)
        assert (main.rename == "text-encoders") == main.repo.startswith("gpustack/")
        assert main.rename or apart or main.file == "sd3_medium_incl_clips.safetensors"


def test_only_originals_of_stability_are_gated() -> None:
    """A default never needs a token; what Black Forest Labs gates comes from where it is not."""
    gated = {source.repo for source in sources() if source.gated}
    assert gated == {"stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large"}
    assert not any(source.gated for source in COMPONENTS.values())
    first = {entry.id: entry for entry in reversed(ENTRIES)}
    assert not any(source.gated for entry in first.values() for source in entry.sources.values())
    closed = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.1-Kontext-dev", "FLUX.1-Fill-dev", "FLUX.2-dev")
    assert not {source.repo for source in sources()} & {f"black-forest-labs/{name}" for name in closed}


def test_files_that_break_are_not_named() -> None:
    """sd.cpp ignores the scales of `fp8_scaled`; one file on the hub has another hash than its bytes."""
    names = {(source.repo, source.file) for source in sources()}
    assert not [file for _, file in names if "scaled" in file]
    assert ("gpustack/stable-diffusion-v2-1-GGUF", "stable-diffusion-v2-1-Q4_0.gguf") not in names


def test_the_best_quantisation_for_most_comes_first() -> None:
    """Q8_0 leads where there is one, and files that are not quantised come last."""
    quants: dict[str, list[str]] = {}
    for entry in ENTRIES:
        quants.setdefault(entry.id, []).append(entry.quant)
    for names in quants.values():
        assert "Q8_0" not in names[1:]
        assert not any(name in UNQUANTISED for name in names[:-1])


def test_capabilities_are_those_of_the_family() -> None:
    """An entry promises no edit that its family would turn into another."""
    for entry in RUNNABLE:
        mode = entry.edit_mode
        assert ("reference-edit" in entry.capabilities) == (mode == "reference")
        assert mode != "reference" or "inpainting" not in entry.capabilities
        if mode == "inpaint":
            assert entry.capabilities == ("inpainting",)
            assert entry.defaults.strength == 1
