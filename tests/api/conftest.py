"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.api.recipes import write_catalog
from tests.conftest import DEADLINE, App, RunningApp, ServerProcess
from tests.fake_engines import QuickEngine


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE)) as client:
        yield client


@pytest.fixture(scope="session")
def served(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server on the tiny model, for recipes."""
    catalog = write_catalog(tmp_path_factory.mktemp("catalog"))
    process = ServerProcess(model_dir, "--catalog", str(catalog), "--grace", "1")
    process.wait_until_ready()
    yield process
    process.stop()


@pytest_asyncio.fixture
async def quick(running: RunningApp, tmp_path: Path) -> AsyncIterator[App]:
    """The same server without the work, for recipes whose pictures would take the tiny model a minute."""
    async with running(catalog=write_catalog(tmp_path), engine=QuickEngine) as app:
        yield app
