"""The engine's peak memory on a CPU, as estimated (`gguf_imagegen.catalog.memory`) and as measured.

Example: python -m scripts.bench.memory model.gguf --size 256x256 --size 512x512 --tiling. One step is
enough: every step uses the same buffer. Each size gets a worker of its own, for the peak of a process never
falls.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.memory import Estimate, estimate
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.modelfiles.inspect import holds_vae
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import LoadSpec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", action="append", help="WIDTHxHEIGHT; may be given more than once")
    parser.add_argument("--tiling", action="store_true", help="decode in tiles")
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    table = Table("size", "weights", "sampling", "decoding", "estimated", "measured", "ratio")
    for size in args.size or ["256x256"]:
        told, peak = asyncio.run(measure(args, size))
        total = told.total(args.tiling)
        decode = told.decode_tiled if args.tiling else told.decode
        row = [told.weights, told.activations, decode, total, peak]
        table.add_row(size, *(f"{count / 1e6:.0f} MB" for count in row), f"{total / peak:.2f}")
    Console().print(table)


async def measure(args: argparse.Namespace, size: str) -> tuple[Estimate, int]:
    """The estimate, and the most resident bytes of a worker that loads the model and makes one image."""
    entry = entry_of_file(args.model)
    catalog = Catalog([entry], args.model.parent)
    headers = catalog.checked_files(entry)
    wanted, warnings = parse_request({"prompt": "a cat", "size": size, "steps": 1, "vae_tiling": args.tiling})
    spec = plan(wanted, entry, Settings(), "generation", warnings).spec
    model = LoadSpec(
        name=entry.id,
        files=catalog.paths(entry),
        threads=args.threads,
        built_in_vae=any(holds_vae(header) for header in headers.values()),
        flash_attention=args.flash_attention,
    )
    engine = EngineProcess()
    try:
        async for _ in engine.load(model):
            pass
        async for _ in engine.run(spec):
            pass
        peak = peak_of(engine.pid)
    finally:
        await engine.close()
    told = estimate(
        headers, entry.family, spec.width, spec.height, gpu=False, flash_attention=args.flash_attention
    )
    return told, peak


def peak_of(pid: int | None) -> int:
    """The most bytes that a process has had resident so far (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


if __name__ == "__main__":
    main()
