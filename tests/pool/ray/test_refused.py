"""Nodes that cannot be used: who looks at the server sees which, and why."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_imagegen.commands import cluster as command
from gguf_imagegen.pool.ray.messages import WIRE, NodeSeen
from gguf_imagegen.pool.ray.offer import read_offer
from gguf_imagegen.settings import Settings
from tests.pool.ray.near import near_cluster

pytestmark = pytest.mark.posix

OTHER = b'{"wire": 99, "version": "9.9", "name": "their-name", "devices": "of a shape to come"}'


async def test_health_and_status_name_the_host_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a node of another release, whatever its offer looks like."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(ValueError, match="99") as refusal:
        read_offer(OTHER)
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.cluster.take(NodeSeen("1f", "gpu-7", b"", str(refusal.value)))
        (node,) = (await near.app.get("/health"))[1]["cluster"]["nodes"]
        assert (node["name"], node["status"], node["devices"]) == ("gpu-7", "refused", [])
        for words in ("9.9", "version 99", f"version {WIRE}", "install the same release"):
            assert words in node["why"]
        assert await asyncio.to_thread(command.status, Settings(), near.app.url) == 1
        shown = capsys.readouterr().out
        assert "gpu-7" in shown
        assert "speaks version 99" in shown


async def test_the_doctor_lists_machines_and_losses(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server of this machine knows them."""
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("gone", model_dir)
        near.kill("gone")
        near.cluster.take(NodeSeen("1f", "gpu-7", b"", "it runs another release"))
        monkeypatch.setenv("GGUF_IMAGEGEN_PORT", near.app.url.rpartition(":")[2])
        words = [
            sys.executable,
            "-m",
            "gguf_imagegen",
            "doctor",
            "--cluster",
            "127.0.0.1:9",
            "--insecure-cluster",
        ]
        said = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60)
    for line in (
        "gpu-7          refused; it runs another release",
        "gone           starting; cpu",
        "lost lanes     1 so far; the last one was gone/cpu; its actor died",
    ):
        assert line in said.stdout, said
