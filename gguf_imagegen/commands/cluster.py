"""What a server says of its cluster, and taking a node out of it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import aiohttp
from rich.console import Console
from rich.table import Table

from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest

PATIENCE = 30.0


def state(settings: Settings, url: str, patience: float = PATIENCE) -> dict[str, Any]:
    """What `/health` says of the cluster. Raises InvalidRequest if no server answers, or it uses none."""
    cluster: dict[str, Any] | None = asyncio.run(_ask(settings, "GET", url, "/health", patience))["cluster"]
    if cluster is None:
        raise InvalidRequest(f"the server at {url} uses no cluster; start it with --cluster")
    return cluster


def status(settings: Settings, url: str) -> int:
    """A table of the nodes; exit code 1 if the cluster is not joined."""
    cluster = state(settings, url)
    console = Console(highlight=False)
    console.print(f"cluster: {cluster['status']}" + (f", {cluster['why']}" if cluster["why"] else ""))
    console.print(_table(cluster["nodes"]))
    for lost in cluster["lost"]:
        at = datetime.fromtimestamp(lost["at"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        console.print(f"{at} UTC: lane {lost['lane']} was lost: {lost['why']}")
    return int(cluster["status"] != "joined")


def drain(settings: Settings, url: str, node: str) -> int:
    """Returns at once; `status` says when the node is drained."""
    path = f"/v1/cluster/nodes/{quote(node, safe='')}/drain"
    found = asyncio.run(_ask(settings, "POST", url, path))
    print(f"{found['name']}: {found['status']}")
    return 0


def _table(nodes: list[dict[str, Any]]) -> Table:
    table = Table("node", "status", "version", "devices", "CPU", "in memory")
    for node in nodes:
        devices, models = ", ".join(node["devices"]), ", ".join(node["models"])
        about = node["name"], node["status"], node["version"] or "", devices, node["cpu"] or ""
        table.add_row(*about, node["why"] or models)
    return table


async def _ask(
    settings: Settings, method: str, url: str, path: str, patience: float = PATIENCE
) -> dict[str, Any]:
    headers = {}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key[0].get_secret_value()}"
    timeout = aiohttp.ClientTimeout(total=patience)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url.rstrip("/") + path, headers=headers) as answer,
        ):
            body: dict[str, Any] = await answer.json()
    except asyncio.TimeoutError:
        raise InvalidRequest(f"no answer from {url} within {patience:g} s") from None
    except (aiohttp.ClientError, ValueError) as exc:
        raise InvalidRequest(f"no server answers at {url} ({type(exc).__name__}); see --url") from None
    if "error" in body and answer.status != 200 and "cluster" not in body:
        raise InvalidRequest(body["error"]["message"])
    return body
