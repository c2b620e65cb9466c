"""Before a model that no catalog knows is fetched: its files, their sizes, its memory, and a question."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.store import Store, size_words
from gguf_imagegen.download.targets import Target
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest


def agreed(console: Console, target: Target, catalog: Catalog, settings: Settings) -> bool:
    """Show what would be fetched, and ask; `--yes` is a yes, and without a terminal the only one."""
    console.print(_table(target, catalog), _words(target, catalog, settings), highlight=False, soft_wrap=True)
    if settings.yes:
        return True
    if not (console.is_terminal and sys.stdin.isatty()):
        raise InvalidRequest("this needs a yes, and there is no terminal to ask at: add --yes")
    return Confirm.ask("Fetch it?", console=console, default=True)


def _table(target: Target, catalog: Catalog) -> Table:
    store = Store(catalog.models_dir)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("file", "of", "size", ""):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "size" else "left")
    for role, path in target.entry.files.items():
        if (source := target.entry.sources.get(role)) is None:
            table.add_row(path.name, "this machine", size_words(path.stat().st_size), "is here")
            continue
        size = size_words(source.bytes) if source.bytes else "?"
        more = f" and {len(source.parts) - 1} parts" if source.parts else ""
        table.add_row(source.file + more, source.url, size, "" if store.wanted(source) else "is here")
    return table


def _words(target: Target, catalog: Catalog, settings: Settings) -> str:
    entry = target.entry
    others = ", ".join(each.quant for each in target.new if each.name != entry.name)
    survey = Survey(catalog.with_entries(target.new), settings)
    return (
        f"{entry.name}: {entry.family}, licence {entry.licence}"
        + (f"; other quantisations: {others}" if others else "")
        + f"\nit {survey.words(entry)}"
    )
