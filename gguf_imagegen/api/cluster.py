"""The cluster that a server uses: what `/health` says of it, and taking a node out of it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.pool.ray.cluster import Cluster, Node
from gguf_imagegen.vocabulary.errors import InvalidRequest, NotFound


def state_of(cluster: Cluster | None) -> dict[str, Any] | None:
    """Without addresses: everybody may read it."""
    if cluster is None:
        return None
    nodes = sorted(cluster.nodes.values(), key=lambda node: node.name)
    return {
        "status": cluster.status,
        "why": cluster.why or None,
        "nodes": [_node(node) for node in nodes],
        "lost": [{"lane": each.lane, "why": each.why, "at": int(each.at)} for each in cluster.lost],
        "lanes_lost": cluster.losses.total(),
        "late_events": cluster.late,
    }


def _node(node: Node) -> dict[str, Any]:
    offer = node.offer
    return {
        "name": node.name,
        "status": node.status,
        "why": node.why or None,
        "version": offer.version if offer else None,
        "devices": [device.name for device in offer.devices] if offer else [],
        "cpu": (offer.cpu or None) if offer else None,
        "models": sorted({entry.name for lane in node.lanes.values() for entry in lane.entries}),
    }


@endpoint(answers.ClusterNode, errors=(*ADMIN, NotFound, InvalidRequest))
@admins_only
async def drain(request: web.Request) -> web.Response:
    """POST /v1/cluster/nodes/{name}/drain: give a node no more work; its jobs end first."""
    cluster = request.app[SERVICE].cluster
    if cluster is None:
        raise NotFound("this server uses no cluster; see --cluster")
    return reply(answers.ClusterNode, _node(cluster.drain(request.match_info["name"])))
