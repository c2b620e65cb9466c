"""deploy/grafana.json: every panel asks for metrics that the server has, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.client import GENERATIONS, SMALL
from tests.conftest import App, RunningApp
from tests.fake_engines import CrashesAtStep
from tests.pool.ray.near import near_cluster

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
pytestmark = pytest.mark.posix

OF_PROMETHEUS = {"instance", "le"}


def queries(dashboard: dict[str, Any]) -> list[str]:
    variables = [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return [*variables, *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])]


async def add_metrics(app: App, labels: dict[str, set[str]]) -> None:
    """Those of this server, as Prometheus reads them: names with their suffixes, and their labels."""
    async with app.session.get(app.url + "/metrics") as answer:
        for family in text_string_to_metric_families(await answer.text()):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)


async def test_every_metric_exists(
    running: RunningApp, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server that worked and one of a cluster that lost a lane."""
    labels: dict[str, set[str]] = {}
    async with running(engine=CrashesAtStep) as app:
        for steps in (1, 3):  # at the third one the engine crashes
            await app.post(GENERATIONS, **{**SMALL, "steps": steps})
            await add_metrics(app, labels)
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("a", model_dir)
        near.kill("a")
        await add_metrics(near.app, labels)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = queries(dashboard)
    assert len(asked) > 10
    for query in asked:
        names = re.findall(r"imagegen_\w+", query)
        assert names
        for name in names:
            assert name in labels, f"{name} of {query!r} is no metric"
        known = set().union(*(labels[name] for name in names)) | OF_PROMETHEUS
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {label.strip() for label in group.split(",")} <= known, query


def test_panels_do_not_overlap() -> None:
    """Each has a number and a place of its own, within the 24 columns that Grafana has."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    assert len({panel["id"] for panel in panels}) == len(panels)
