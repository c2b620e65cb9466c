"""Containers and units: what they name exists, and they give a server no more rights than it needs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.settings import Settings
from scripts.image.dockerfile import stages

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
STAGES = stages(DOCKERFILE)
STEPS = [step for stage in STAGES.values() for step in stage.steps]
SERVICE = ROOT / "deploy" / "systemd" / "gguf-imagegen.service"
QUADLET = CONTAINER / "gguf-imagegen.container"
MOST_EXPOSED = 3.0
VARIABLE = re.compile(r"GGUF_IMAGEGEN_([A-Z_]+)\b")


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of keys with all their values, as systemd reads them."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(match[1], {})
        elif line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            assert separator, line
            section.setdefault(key, []).append(value)
    return sections


def test_stages_follow_from_each_other() -> None:
    """Each begins with an image of elsewhere or a stage above it, and copies from stages above it."""
    above: set[str] = set()
    for stage in STAGES.values():
        assert stage.base in above or ":" in stage.base, stage.base
        for step in stage.steps:
            for other in filter(None, (step.options.get("from"), step.mount.get("from"))):
                assert other in above, other
        above.add(stage.name)
    assert {"cpu", "vulkan", "cuda"} <= above


def test_what_is_copied_exists() -> None:
    """And is not kept back by the list of what the build may see."""
    allowed = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    for step in STEPS:
        if step.word == "COPY" and not step.options:
            for source in step.rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source


def test_what_is_run_exists() -> None:
    """Scripts with flags that they have."""
    for script, flags in re.findall(r"(scripts/\w+)((?: [^&\n]+)?)", "\n".join(step.rest for step in STEPS)):
        text = (ROOT / script).read_text()
        assert os.access(ROOT / script, os.X_OK)
        assert all(flag in text for flag in re.findall(r"--[a-z]+", flags)), (script, flags)


@pytest.mark.parametrize("name", ["cpu", "vulkan", "cuda"])
def test_images_run_without_rights(name: str) -> None:
    """As a user of their own in the end, also where a later stage installs something as root."""
    users = [step.rest for step in STAGES["cpu"].steps + STAGES[name].steps if step.word == "USER"]
    assert users[-1] == "10001:10001"
    every = " ".join(f"{step.word} {step.rest}" for step in STAGES["cpu"].steps)
    for word in (
        "HEALTHCHECK",
        "/livez",
        '["/models", "/state"]',
        "org.cyclonedx.sbom",
        "install -d -o 10001",
    ):
        assert word in every


@pytest.mark.parametrize("path", [CONTAINER / "Dockerfile", CONTAINER / "compose.yaml", SERVICE, QUADLET])
def test_variables_are_settings(path: Path) -> None:
    for name in VARIABLE.findall(path.read_text(encoding="utf-8")):
        assert name.lower() in Settings.model_fields, name


def test_compose_gives_no_rights() -> None:
    """A read-only root, no capabilities, and no server without a key."""
    service: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"][
        "gguf-imagegen"
    ]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert ":?" in service["environment"]["GGUF_IMAGEGEN_API_KEY"]
    context = (CONTAINER / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    assert {volume.partition(":")[2] for volume in service["volumes"]} == {"/models", "/state"}


def test_the_quadlet_gives_no_rights() -> None:
    found = unit(QUADLET)["Container"]
    assert found["ReadOnly"] == ["true"]
    assert found["DropCapability"] == ["all"]
    assert {volume.split(":")[1] for volume in found["Volume"]} == {"/models", "/state"}


def test_the_service_runs_what_the_archive_has() -> None:
    """And keeps everything below the folder that systemd makes for it."""
    found = unit(SERVICE)["Service"]
    assert found["ExecStart"] == ["/opt/gguf-imagegen/gguf-imagegen serve"]
    folders = [value for value in found["Environment"] if "_DIR=" in value]
    assert folders == [
        "GGUF_IMAGEGEN_STATE_DIR=%S/gguf-imagegen/state", "GGUF_IMAGEGEN_MODELS_DIR=%S/gguf-imagegen/models",
    ]  # fmt: skip
    assert found["StateDirectory"] == ["gguf-imagegen"]
    assert int(found["TimeoutStopSec"][0]) > Settings.model_fields["grace"].default


def test_the_service_is_hardly_exposed() -> None:
    """By systemd's own measure, from 0 to 10."""
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(SERVICE)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    exposure = re.search(r"exposure level for gguf-imagegen.service: ([\d.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= MOST_EXPOSED
