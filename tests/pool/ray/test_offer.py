"""What a node says that it has, before it gets lanes; and the ports that it takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gguf_imagegen.commands import cluster as command
from gguf_imagegen.pool.identity import cpu_name
from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.pool.ray.messages import NodeSeen
from gguf_imagegen.pool.ray.nodes import ClusterFailed
from gguf_imagegen.pool.ray.offer import offer
from gguf_imagegen.settings import Settings
from tests.pool.ray.near import near_cluster

pytestmark = pytest.mark.posix


async def test_a_machine_without_a_gpu_offers_its_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name, in health and in the table."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("GGUF_IMAGEGEN_THREADS", "1")
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.cluster.take(NodeSeen("1f", "alpha.local", offer()))
        (node,) = (await near.app.get("/health"))[1]["cluster"]["nodes"]
        assert (node["devices"], node["cpu"]) == (["cpu"], cpu_name())
        await asyncio.to_thread(command.status, Settings(), near.app.url)
    assert cpu_name() in capsys.readouterr().out


def test_all_ports_are_in_the_range() -> None:
    flags = dict(flag.split("=") for flag in nodes.ports_of(Settings(cluster_ports="6400-6499")))
    low, high = int(flags.pop("--min-worker-port")), int(flags.pop("--max-worker-port"))
    fixed = sorted(map(int, flags.values()))
    assert fixed == list(range(6400, low))
    assert (low, high) == (6406, 6499)
    assert nodes.ports_of(Settings()) == []


@pytest.mark.parametrize("ports", ["6400-6410", "6499-6400", "65500-65599"])
def test_a_range_that_does_not_do_is_refused(ports: str) -> None:
    with pytest.raises(ClusterFailed, match="at least 30 ports"):
        nodes.ports_of(Settings(cluster_ports=ports))


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("auto", f"{nodes.own_address()}:6379"),
        ("auto:6400", f"{nodes.own_address()}:6400"),
        ("auto:10.0.0.5", "10.0.0.5:6379"),
        ("auto:10.0.0.5:6400", "10.0.0.5:6400"),
    ],
)
def test_where_a_cluster_is_started(said: str, address: str) -> None:
    assert nodes.head_address(said) == address
