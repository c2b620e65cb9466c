"""The command line: serve, mcp, generate, models, pull, tune, rm, verify, convert, doctor and more."""

from __future__ import annotations

import asyncio
import functools
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gguf_imagegen import __version__
from gguf_imagegen.catalog.parse import CatalogError
from gguf_imagegen.commands.flags import PlainCommand, with_settings
from gguf_imagegen.machine import stdio
from gguf_imagegen.pool.ray.node_settings import NEAR
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import CallersError
from gguf_imagegen.vocabulary.errors import ImagegenError

MODEL_FLAGS = ("model", "component", "models_dir", "models_from", "catalog", "yes", "weight_type")
ENGINE_FLAGS = (
    "threads", "kernels", "flash_attention", "diffusion_conv_direct", "vae_conv_direct", "huge_pages", "mmap",
    "offload_to_cpu", "vae_on_cpu", "text_encoders_on_cpu", "control_net_on_cpu", "max_vram", "rng",
    "sampler_rng", "load_timeout",
)  # fmt: skip
PICTURE_FLAGS = ("memory_check", "lora_dir", "embedding_dir", "tuning", "provenance")
WHERE_FLAGS = ("host", "port", "public_url", "callers", "insecure", "cors_origins", "allowed_hosts")
"""Of no use to a server that only this process calls."""

WIDE = 10_000
"""Columns of a pipe: one line a model."""
HELP_WIDTH = 250
"""Columns that help takes at most; less where the terminal has less."""

NODE_FLAGS = (*NEAR, "cluster_token", "cluster_ports", "insecure_cluster", "grace")

app = typer.Typer(
    name="gguf-imagegen",
    context_settings={"auto_envvar_prefix": "GGUF_IMAGEGEN", "max_content_width": HELP_WIDTH},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
command = functools.partial(app.command, cls=PlainCommand)

catalog_app = typer.Typer(no_args_is_help=True, help="What the model catalog says, and whether it is right.")
app.add_typer(catalog_app, name="catalog")
cluster_app = typer.Typer(no_args_is_help=True, help="The machines that a server uses besides its own.")
app.add_typer(cluster_app, name="cluster")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", allow_from_autoenv=False)
    ] = False,
) -> None:
    """Images from GGUF diffusion models, on this machine, every step visible."""
    if version:
        print(__version__)
        raise typer.Exit


@command("serve")
@with_settings()
def serve(settings: Settings) -> int:
    """Serve the HTTP API."""
    from gguf_imagegen.commands.serve import run_server

    return run_server(settings)


@command("node")
@with_settings(*NODE_FLAGS)
def node(
    settings: Settings,
    head: Annotated[str, typer.Option(help="HOST[:PORT] of the cluster's head", allow_from_autoenv=False)],
    name: Annotated[str | None, typer.Option(help="what it is called; the host's name if not given")] = None,
    pull: Annotated[bool, typer.Option("--pull", help="fetch models that jobs need and no node has")] = False,
    ray: Annotated[
        str, typer.Option(help="further flags of `ray start`, such as '--node-ip-address=10.0.0.5'")
    ] = "",
) -> int:
    """Offer the devices of this machine to a server elsewhere."""
    from gguf_imagegen.commands.node import run_node

    return run_node(settings, head, name, pull=pull, ray_flags=shlex.split(ray))


@command("mcp")
@with_settings(*(name for name in Settings.model_fields if name not in WHERE_FLAGS))
def mcp(
    settings: Settings,
    url: Annotated[
        str | None, typer.Option(help="of a server that runs; without it one runs inside this process")
    ] = None,
) -> int:
    """Speak MCP on stdin and stdout: tools that make pictures, for chat programs."""
    from gguf_imagegen.commands.mcp import run_mcp

    return run_mcp(settings, url)


@command("generate")
@with_settings(*MODEL_FLAGS, *ENGINE_FLAGS, *PICTURE_FLAGS)
def generate(
    settings: Settings,
    prompt: Annotated[str, typer.Argument(help="what the picture shows; <lora:NAME:WEIGHT> applies a LoRA")],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write")] = Path("out.png"),
    negative_prompt: Annotated[str, typer.Option(help="what it must not show")] = "",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT or auto")] = "auto",
    steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    seed: Annotated[int | None, typer.Option(help="seed; random if none is given")] = None,
    variation_seed: Annotated[int | None, typer.Option(help="seed whose noise is mixed in; random")] = None,
    variation_strength: Annotated[float, typer.Option(help="how much of it is mixed in, 0 to 1")] = 0.0,
    n: Annotated[int, typer.Option("-n", "--n", help="number of images")] = 1,
    sampler: Annotated[str | None, typer.Option(help="sampler, e.g. euler_a")] = None,
    schedule: Annotated[str | None, typer.Option(help="schedule, e.g. karras")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="classifier-free guidance")] = None,
    image: Annotated[
        Path | None, typer.Option(help="image to start from", exists=True, dir_okay=False)
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="white = repaint", exists=True, dir_okay=False)] = None,
    strength: Annotated[float | None, typer.Option(help="how much of the image is changed, 0 to 1")] = None,
) -> int:
    """Make a picture and write it to a file, without a server."""
    from gguf_imagegen.commands import generate
    from gguf_imagegen.commands.pull import pull_address
    from gguf_imagegen.engines.sdcpp.choice import choose_build

    choose_build(settings)
    if code := pull_address(settings):
        return code
    output_format = {"jpg": "jpeg"}.get(output.suffix[1:].lower(), output.suffix[1:].lower() or "png")
    fields: dict[str, object] = {
        "prompt": prompt, "negative_prompt": negative_prompt, "size": size, "steps": steps, "seed": seed,
        "n": n, "sampler": sampler, "schedule": schedule, "cfg_scale": cfg_scale, "strength": strength,
        "variation_seed": variation_seed, "variation_strength": variation_strength,
        "output_format": output_format,
        "image": [image.read_bytes()] if image else [],
        "mask": mask.read_bytes() if mask else None,
    }  # fmt: skip
    given = {name: value for name, value in fields.items() if value is not None}
    bar = generate.progress_bar()
    bar.disable = not bar.console.is_interactive  # elsewhere it would end in an empty line
    with bar:
        paths = asyncio.run(generate.generate(settings, given, output, bar))
    for path in paths:
        print(path)
    return 0


@command("models")
@with_settings("models_dir", "models_from", "catalog")
def models(
    settings: Settings, json: Annotated[bool, typer.Option("--json", help="for programs")] = False
) -> int:
    """List the models of the catalog: on this machine, or how much to download, and whether they fit."""
    from gguf_imagegen.commands import inspect

    listed = inspect.list_models(settings)
    if json:
        print(inspect.as_json(listed))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDE)
        console.print(inspect.models_table(listed))
    return 0


@command("pull")
@with_settings("component", "models_dir", "catalog", "memory_check", "lora_dir", "upscaler_dir", "yes")
def pull(
    settings: Settings,
    model: Annotated[
        str, typer.Argument(help="ID[:QUANT], a component, hf.co/OWNER/REPO[:QUANT], a file's URL")
    ],
) -> int:
    """Fetch the files of a model that fits into memory; what was interrupted goes on from there."""
    from gguf_imagegen.commands import pull

    return pull.pull(settings, model)


@command("tune")
@with_settings("component", "models_dir", "catalog", "memory_check", "weight_type", *ENGINE_FLAGS)
def tune(
    settings: Settings,
    model: Annotated[str, typer.Argument(help="catalog id or FILE.gguf")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the model's own if not given")] = None,
    steps: Annotated[
        int | None, typer.Option(min=3, help="steps measured of each candidate; 3 s of them if not given")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="file for all figures")] = None,
) -> int:
    """Measure which options are fastest for a model on this machine; `serve` uses them from then on."""
    from gguf_imagegen.commands.tune import tune
    from gguf_imagegen.commands.tuning.measure import Effort
    from gguf_imagegen.engines.sdcpp.choice import choose_build

    choose_build(settings)
    effort = Effort() if steps is None else Effort(steps, 0)
    return tune(settings, model, effort, size, json)


@command("rm")
@with_settings("models_dir", "catalog")
def remove(
    settings: Settings, model: Annotated[str, typer.Argument(help="ID (every quantisation) or ID:QUANT")]
) -> int:
    """Delete the files of a model that no other model on this machine uses."""
    from gguf_imagegen.catalog.store import size_words
    from gguf_imagegen.commands import pull

    removal = pull.remove(settings, model)
    for file in removal.removed:
        print(f"removed {file}")
    for file in removal.kept:
        print(f"kept {file}: another model uses it")
    print(f"{size_words(removal.freed)} freed")
    return 0


@command("verify")
@with_settings("models_dir", "catalog")
def verify(
    settings: Settings, model: Annotated[str, typer.Argument(help="ID (every quantisation) or ID:QUANT")]
) -> int:
    """Hash the files of a model; a wrong one is set aside, and the exit code is 1."""
    from gguf_imagegen.commands import pull

    return pull.verify(settings, model)


@command("inspect")
@with_settings("models_dir", "catalog")
def inspect(
    settings: Settings,
    target: Annotated[str, typer.Argument(help="FILE, ID[:QUANT] of the catalog, or a web address")],
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> int:
    """Say what a model file is and what it needs; of a file on the web only the header is read."""
    from gguf_imagegen.commands import inspect

    found = inspect.inspect_target(target, settings)
    if json:
        print(inspect.as_json(found))
    else:
        Console().print(inspect.as_table(found))
    return 0


@command("convert")
@with_settings("component", "models_dir", "catalog", "memory_check", *ENGINE_FLAGS)
def convert(
    settings: Settings,
    source: Annotated[Path, typer.Argument(metavar="IN", help="GGUF or safetensors file")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="GGUF file to write")],
    type: Annotated[
        str,
        typer.Option(help="type of the weights, e.g. q8_0; without it the parts of a split IN are joined"),
    ] = "",
    rules: Annotated[str, typer.Option(help="PATTERN=TYPE,…: tensors with types of their own")] = "",
    vae: Annotated[Path | None, typer.Option(help="VAE to put into the file")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="compare a picture of the result with the source's")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="replace OUT if it exists")] = False,
) -> int:
    """Write a model with weights of another type, and say how near its pictures stay; or join its parts."""
    from gguf_imagegen.commands.convert import run_convert, run_join
    from gguf_imagegen.engines.conversion import ordered
    from gguf_imagegen.engines.sdcpp.choice import choose_build

    if not type:
        return run_join(source, target, force=force)
    choose_build(settings)
    return run_convert(settings, ordered(source, target, type, rules, vae, force=force), check=check)


@command("doctor")
@with_settings(
    "models_dir",
    "models_from",
    "catalog",
    "threads",
    "kernels",
    "devices",
    "cpu_lanes",
    "cluster",
    "cluster_token",
    "insecure_cluster",
    "state_dir",
)
def doctor(settings: Settings) -> int:
    """Say what this machine has and lacks; exit code 1 if pictures cannot be made."""
    from gguf_imagegen.commands.doctor import examine

    findings = examine(settings)
    for finding in findings:
        mark = {True: "ok", False: "FAULT", None: "-"}[finding.ok]
        print(f"{mark:5} {finding.name:14} {finding.words}")
    return int(any(finding.ok is False for finding in findings))


Url = Annotated[str, typer.Option(help="of the server that uses the cluster")]
HERE = "http://127.0.0.1:8080"


@cluster_app.command("status", cls=PlainCommand)
@with_settings("api_key")
def cluster_status(settings: Settings, url: Url = HERE) -> int:
    """List the machines, what they do, and the lanes that were lost."""
    from gguf_imagegen.commands.cluster import status

    return status(settings, url)


@cluster_app.command("drain", cls=PlainCommand)
@with_settings("api_key")
def cluster_drain(
    settings: Settings, node: Annotated[str, typer.Argument(help="its name")], url: Url = HERE
) -> int:
    """Give a machine no more work, so that it can be stopped when its jobs have ended."""
    from gguf_imagegen.commands.cluster import drain

    return drain(settings, url, node)


@catalog_app.command("check", cls=PlainCommand)
@with_settings("catalog")
def check_catalog(
    settings: Settings,
    online: Annotated[bool, typer.Option("--online", help="ask the hub, too; downloads nothing")] = False,
) -> int:
    """Look for faults in the catalog, one line each; exit code 1 if there are any."""
    from gguf_imagegen.catalog.check import Words, check_catalogs
    from gguf_imagegen.engines.sdcpp.abilities import ABILITIES

    checked = check_catalogs(settings.catalog, Words(ABILITIES.samplers, ABILITIES.schedules))
    findings = checked.findings
    if online:
        from gguf_imagegen.download.drift import check_hub

        findings += check_hub(checked.sources)
    for finding in findings:
        print(finding)
    faults = sum(finding.fault for finding in findings)
    count = len({entry.id for entry in checked.entries})
    print(f"{count} models in {len(checked.entries)} quantisations, {faults} faults")
    return int(faults > 0)


@command("make-test-model")
def make_test_model(
    folder: Annotated[Path, typer.Argument(help="where the two files go")],
    size: Annotated[str, typer.Option(help="small (quick) or medium (25 MB, as in the bench)")] = "small",
) -> None:
    """Write a tiny model with random weights: it makes noise, for trying the API."""
    from gguf_imagegen.commands.testmodel import write_test_model

    if size not in ("small", "medium"):
        raise typer.BadParameter("--size is small or medium")
    folder.mkdir(parents=True, exist_ok=True)
    hidden, single_blocks = (256, 5) if size == "medium" else (128, 1)
    for path in write_test_model(folder, hidden=hidden, single_blocks=single_blocks).values():
        print(path)


def main() -> None:
    """Entry point: errors become one line and an exit code, never a traceback."""
    stdio.open_closed()
    logging.captureWarnings(True)
    try:
        app()
    except (ImagegenError, CatalogError, CallersError, OSError) as exc:
        print(f"gguf-imagegen: {exc}", file=sys.stderr)
        sys.exit(1)
