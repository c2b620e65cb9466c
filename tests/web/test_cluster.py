"""The page of a server of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from gguf_imagegen.pool.ray.messages import NodeSeen
from tests.pool.ray.near import near_cluster
from tests.web.conftest import OpenPage

pytestmark = pytest.mark.posix


async def test_machines_are_shown_with_what_is_wrong(
    visit: OpenPage, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that works, one that was refused by its host's name and why, and a lane that was lost."""
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("gone", model_dir)
        near.kill("gone")
        near.node("busy", model_dir)
        await near.ready("busy")
        near.cluster.take(NodeSeen("1f", "gpu-7", b"", "it runs another release"))
        async with visit(near.app.url, "#/server", statuses=(503,)) as page:
            nodes = page.locator("#nodes")
            await expect(nodes.get_by_label("busy")).to_contain_text("ready")
            await expect(nodes.get_by_label("gpu-7")).to_contain_text("refused")
            await expect(nodes.get_by_label("gpu-7")).to_contain_text("it runs another release")
            await expect(page.locator("#lost")).to_contain_text("gone/cpu was lost (its actor died)")
