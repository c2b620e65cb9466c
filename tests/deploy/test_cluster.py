"""deploy/cluster: Kubernetes' own schemas, KubeRay's as far as it is used here, names that fit."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.pool.ray.node_settings import FOLDER, LEAVING

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "deploy" / "cluster"
EXTRA = re.search(r'"ray(\S+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]  # type: ignore[index]
"""Which versions of Ray do."""
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {
    "type": "object",
    "additionalProperties": False,
    "required": ["spec"],
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object", "required": ["containers"]}},
}
NUMBER = {"type": "integer", "minimum": 0}
WORKERS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groupName", "template"],
    "properties": {
        "groupName": {"type": "string"},
        "replicas": NUMBER,
        "minReplicas": NUMBER,
        "maxReplicas": NUMBER,
        "rayStartParams": PARAMS,
        "template": POD,
    },
}
RAY_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "headGroupSpec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["template"],
            "properties": {"rayStartParams": PARAMS, "template": POD},
        },
        "workerGroupSpecs": {"type": "array", "items": WORKERS},
    },
}
"""Of the RayCluster of ray.io/v1 what is used here."""


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text(encoding="utf-8")))


def pods() -> list[dict[str, Any]]:
    """Templates of pods, wherever they are."""
    found: list[dict[str, Any]] = []
    for each in documents():
        if each["kind"] == "RayCluster":
            groups = [each["spec"]["headGroupSpec"], *each["spec"]["workerGroupSpecs"]]
            found.extend(group["template"] for group in groups)
        elif each["kind"] == "Deployment":
            found.append(each["spec"]["template"])
    return found


def test_kubernetes_takes_it() -> None:
    """By its schemas, strictly; the templates of pods in the RayCluster too."""
    ray = [each for each in documents() if each["apiVersion"] == "ray.io/v1"]
    for each in documents():
        if each not in ray:
            kubernetes_validate.validate(each, "1.37", strict=True)
    for number, pod in enumerate(pods()):
        whole = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}"},
            "spec": pod["spec"],
        }
        kubernetes_validate.validate(whole, "1.37", strict=True)
    for each in ray:
        Draft202012Validator(RAY_CLUSTER).validate(each["spec"])


def test_names_fit() -> None:
    """Volumes that are mounted are there; the front finds the head's service; ports have one name."""
    for pod in pods():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    by_kind = {each["kind"]: each for each in documents()}
    front = by_kind["Deployment"]["spec"]["template"]
    words = front["spec"]["containers"][0]["args"]
    assert words[words.index("--cluster") + 1] == f"{by_kind['RayCluster']['metadata']['name']}-head-svc:6379"
    assert by_kind["Service"]["spec"]["selector"] == front["metadata"]["labels"]
    assert by_kind["Service"]["spec"]["ports"][0]["targetPort"] in {
        port["name"] for port in front["spec"]["containers"][0]["ports"]
    }


def test_pods_of_ray_have_what_our_nodes_have() -> None:
    """Variables of Ray without which engines see no GPU, or end with a lost head; and how to leave."""
    fixed = {"RAY_AUTH_TOKEN", "RAY_DISABLE_IMPORT_WARNING", "RAY_worker_maximum_startup_concurrency"}
    ours = {name: value for name, value in nodes.environment("t").items() if name.startswith("RAY_")}
    wanted = {name: ours[name] for name in ours.keys() - fixed - nodes.UNREAD.keys()}
    (ray,) = (each for each in documents() if each["kind"] == "RayCluster")
    assert f">={ray['spec']['rayVersion'].rpartition('.')[0]}" in EXTRA
    for pod in pods()[:2]:
        (container,) = pod["spec"]["containers"]
        values = {each["name"]: each.get("value") for each in container["env"]}
        assert wanted.items() <= values.items()
        assert container["livenessProbe"]["exec"]
    folder = values[FOLDER]
    assert f"{folder}/{LEAVING}" in container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert folder in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_images_have_ray() -> None:
    """Those of the Dockerfile with the extra, by a name that says so."""
    words = (CLUSTER / "compose.yaml").read_text(encoding="utf-8")
    assert "--build-arg EXTRAS=mcp,cluster -t gguf-imagegen:cluster" in words
    assert {each["image"] for pod in pods() for each in pod["spec"]["containers"]} == {
        "gguf-imagegen:cluster"
    }


def test_the_arithmetic_is_right() -> None:
    """Of docs/cluster.md: each row of the table follows from what was measured and assumed."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").partition("## Arithmetic")[2]
    said = (
        r"Measured: ([\d.]+) ms of the\s+server's CPU for a step and ([\d.]+) ms .*?,"
        r" ([\d.]+) ms of the bridge's"
    )
    step, rest, bridge = map(float, re.search(said, text).groups())  # type: ignore[union-attr]
    rows = re.findall(r"^\| ([\d,]+) \|(.*)\|$", text, re.MULTILINE)
    assert [gpus for gpus, _ in rows] == ["8", "100", "1,000"]
    for gpus, cells in rows:
        pictures = int(gpus.replace(",", "")) / 5
        server, across = pictures * (20 * step + rest) / 10, pictures * 20 * bridge / 10
        wanted = [pictures, 20 * pictures, pictures * (1.5 + 20 * 0.015), server, across, 4 * pictures]
        assert [amount(cell) for cell in cells.split("|")] == pytest.approx(wanted, rel=0.2), gpus


def amount(cell: str) -> float:
    """A number; cores as per cent of one."""
    found = float(re.search(r"[\d,.]+", cell)[0].replace(",", ""))  # type: ignore[index]
    return 100 * found if "cores" in cell else found


def test_compose() -> None:
    """A front and two nodes; volumes and what they wait for are there; no secret has a default."""
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert set(services) == {"front", "node-1", "node-2"}
    for service in services.values():
        assert service["image"] == "gguf-imagegen:cluster"
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])
        assert set(service.get("depends_on", ())) <= set(services)
        assert all(":?" in value for value in service["environment"].values())
    assert services["node-1"]["command"][:3] == ["node", "--head", "front:6379"]


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.service")), ids=lambda path: path.name)
def test_units(path: Path) -> None:
    """Without rights, with a bounded stop, and started again."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path, encoding="utf-8")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:3] == ["node", "--head"]
    assert service["NoNewPrivileges"] == service["DynamicUser"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert int(service["TimeoutStopSec"]) > 0
