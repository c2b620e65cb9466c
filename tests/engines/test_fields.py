"""Every field of the engine's structs: documented where it is said, and taken by the real engine."""

from __future__ import annotations

import ctypes
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import stable_diffusion_cpp.stable_diffusion_cpp as low
from msgspec.structs import replace

from gguf_imagegen.catalog.tiles import count_of
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp.library import context_params, generation_params
from gguf_imagegen.planning.engine_fields import StepCacheOptions
from gguf_imagegen.vocabulary.engine import Generate, Hires, LoadSpec, Role, StepCache
from gguf_imagegen.vocabulary.events import Progress
from tests.engines.test_process import GRADIENT, SPEC, all_of, images, loaded

TABLES = Path(__file__).parents[2] / "docs/engine.md"
WHOLE = (low.sd_image_t, low.sd_lora_t)


def tiny(folder: Path) -> LoadSpec:
    files: dict[Role, Path] = {"model": folder / "tiny-random.gguf", "taesd": folder / "tiny-random-tae.gguf"}
    return LoadSpec("test", files, threads=1)


@pytest.fixture
def model(model_dir: Path) -> LoadSpec:
    return tiny(model_dir)


@pytest_asyncio.fixture(scope="session")
async def engine(model_dir: Path) -> AsyncIterator[EngineProcess]:
    """One loaded engine for all tests."""
    async with loaded(tiny(model_dir)) as process:
        yield process


def leaves(kind: Any, prefix: str = "") -> Iterator[str]:
    """The fields of a struct, those of structs in it by their paths; a picture is one field."""
    for name, field, *_ in kind._fields_:
        if isinstance(field, type) and issubclass(field, ctypes.Structure) and field not in WHOLE:
            yield from leaves(field, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_is_in_the_table() -> None:
    """docs/engine.md says of each field where it is, or why it is nowhere; and has no field that is none."""
    section = TABLES.read_text(encoding="utf-8").partition("## Every field of the engine")[2]
    load, make = re.findall(r"(?ms)^\| (?:loading a model|making a picture) .*?\n\n", section)
    for table, kind in ((load, low.sd_ctx_params_t), (make, low.sd_img_gen_params_t)):
        cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
        assert sorted(re.findall(r"`([\w.]+)`", " ".join(cells))) == sorted(leaves(kind))


def test_details_of_step_caches_are_fields_of_the_struct() -> None:
    """Of the same names, each with a value that the struct can have."""
    options = set(StepCacheOptions.model_fields)
    known = {name for name, *_ in low.sd_cache_params_t._fields_}
    assert options == known - {"mode", "reuse_threshold", "residual_diff_threshold"}


LOADED: dict[str, Any] = {
    "offload_to_cpu": True, "max_vram": 0.5, "control_net_on_cpu": True, "vae_on_cpu": True,
    "text_encoders_on_cpu": True, "force_sdxl_vae_conv_scale": True, "chroma_use_dit_mask": False,
    "chroma_use_t5_mask": True, "chroma_t5_mask_pad": 3,
}  # fmt: skip


def test_what_a_model_is_loaded_with(model: LoadSpec) -> None:
    """Each option reaches its field."""
    params = context_params(
        replace(model, **LOADED, sampler_rng="cpu", prediction="v", seamless="y"), "CPU", ""
    )
    assert (params.offload_params_to_cpu, params.max_vram, params.keep_control_net_on_cpu) == (
        True,
        0.5,
        True,
    )
    assert (params.rng_type, params.sampler_rng_type, params.prediction) == (1, 2, 1)
    assert (params.circular_x, params.circular_y, params.force_sdxl_vae_conv_scale) == (False, True, True)
    chroma = (params.chroma_use_dit_mask, params.chroma_use_t5_mask, params.chroma_t5_mask_pad)
    assert chroma == (False, True, 3)
    assert context_params(replace(model, max_vram=1.0), "CPU", "").offload_params_to_cpu


async def test_options_for_other_models_and_for_gpus_change_nothing_here(
    model: LoadSpec, engine: EngineProcess
) -> None:
    """On a CPU, and on a model that is neither SDXL nor Chroma nor has a ControlNet, all are taken."""
    async with loaded(replace(model, **LOADED)) as other:
        assert (await images(other, SPEC))[0].artifact == (await images(engine, SPEC))[0].artifact


@pytest.mark.parametrize(
    ("option", "values"),
    [("seamless", ("x", "y", "xy")), ("prediction", ("eps", "v", "flux2_flow")), ("sampler_rng", ("cpu",))],
)
async def test_options_that_change_pixels(
    model: LoadSpec, engine: EngineProcess, option: str, values: tuple[str, ...]
) -> None:
    """Each value draws a picture of its own."""
    spec = replace(SPEC, sampler="euler_a")
    made = [(await images(engine, spec))[0].artifact.data]
    for value in values:
        async with loaded(replace(model, **{option: value})) as other:
            made.append((await images(other, spec))[0].artifact.data)
    assert len(set(made)) == 1 + len(values)


async def picture(engine: EngineProcess, **fields: Any) -> bytes:
    spec: Generate = replace(SPEC, **fields)
    return (await images(engine, spec))[0].artifact.data


async def test_noise_levels(engine: EngineProcess) -> None:
    """Those of the request take the schedule's place; timesteps are shifted of SDXL alone."""
    plain = await picture(engine)
    levels = (1.0, 0.6, 0.2, 0.0)
    own = await picture(engine, custom_sigmas=levels)
    assert own not in (plain, await picture(engine, custom_sigmas=(1.0, 0.5, 0.2, 0.0)))
    assert await picture(engine, custom_sigmas=levels, schedule="karras") == own
    assert await picture(engine, shifted_timestep=250) == plain


async def test_references_have_positions_of_their_own(engine: EngineProcess) -> None:
    references = (GRADIENT, replace(GRADIENT, data=GRADIENT.data[::-1]))
    same, own = [
        await picture(engine, ref_images=references, increase_ref_index=increase)
        for increase in (False, True)
    ]
    assert same != own


OPTIONS: dict[StepCache, list[dict[str, Any]]] = {
    "easycache": [{"start_percent": 0.6}, {"end_percent": 0.5}],
    "dbcache": [
        {"Fn_compute_blocks": 100, "Bn_compute_blocks": 100}, {"max_warmup_steps": 12},
        {"max_cached_steps": 1}, {"max_continuous_cached_steps": 1},
        {"scm_mask": "1,1,1,1,1,0,1,1,1,1,0,1", "scm_policy_dynamic": False, "max_warmup_steps": 1},
    ],
    "taylorseer": [{"taylorseer_n_derivatives": 2}, {"taylorseer_skip_interval": 2}],
    "spectrum": [
        {"spectrum_w": 0.9}, {"spectrum_m": 1}, {"spectrum_lam": 9.0}, {"spectrum_window_size": 5},
        {"spectrum_flex_window": 3.0}, {"spectrum_warmup_steps": 9}, {"spectrum_stop_percent": 0.5},
    ],
}  # fmt: skip


@pytest.mark.parametrize("cache", OPTIONS)
async def test_details_of_step_caches(engine: EngineProcess, cache: StepCache) -> None:
    """The engine takes each; those of the caches of whole steps change what is left out."""
    fields: dict[str, Any] = {"step_cache": cache, "step_cache_threshold": 10, "steps": 14}
    plain = await picture(engine, **fields)
    others = [await picture(engine, **fields, step_cache_options=options) for options in OPTIONS[cache]]
    assert {len(other) for other in others} == {len(plain)}
    if cache in ("easycache", "spectrum"):
        assert any(other != plain for other in others)


def test_the_other_details_reach_their_fields() -> None:
    """Those of `ucache`, which takes a UNet."""
    options = {"error_decay_rate": 0.5, "use_relative_threshold": False, "reset_error_on_compute": False}
    cache = generation_params(replace(SPEC, step_cache="ucache", step_cache_options=options), 0, 1)[0].cache
    assert {name: getattr(cache, name) for name in options} == options


def steps_of(events: list[Any], phase: str) -> int:
    return max(event.steps for event in events if isinstance(event, Progress) and event.phase == phase)


@pytest.mark.parametrize(("tile", "overlap"), [((16, 8), 0.0), ((24, 8), 0.25), ((8, 8), 0.5)])
async def test_tiles_of_any_size(engine: EngineProcess, tile: tuple[int, int], overlap: float) -> None:
    """The engine makes as many as we say that it does."""
    spec = replace(SPEC, width=256, steps=1, vae_tiling=True, vae_tile=tile, vae_tile_overlap=overlap)
    assert steps_of(await all_of(engine.run(spec)), "decoding") == count_of("sd1", (256, 64), tile, overlap)


def test_tiles_of_an_upscaler_between_two_passes() -> None:
    """Their size reaches the engine; how it computes in them is tested where it only upscales."""
    hires = Hires(128, 128, 2, 0.5, "model", Path("double.gguf"), tile=32)
    assert generation_params(replace(SPEC, hires=hires), 0, 1)[0].hires.upscale_tile_size == 32
