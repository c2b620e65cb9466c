""".github/workflows: what they run is there, with no more rights than needed, on each system and Python."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.fill_release import notes

ROOT = Path(__file__).parents[2]
FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def read(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.name)
def test_what_runs_is_there(path: Path) -> None:
    """Scripts can be run, called workflows exist, each job ends in bounded time and is told its rights."""
    flow, text = read(path), path.read_text(encoding="utf-8")
    for script in re.findall(r"(?<![\w/])(scripts/\w+(?:\.py)?)", text):
        assert os.access(ROOT / script, os.X_OK), script
    for module in re.findall(r"-m (scripts[.\w]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        if called := job.get("uses"):
            assert (ROOT / called).is_file(), called
        else:
            assert name == "release" or job["timeout-minutes"] <= 90


def test_each_system_and_python() -> None:
    """Those that pyproject.toml allows."""
    (matrix,) = (job["strategy"]["matrix"] for job in read(FLOWS[1])["jobs"].values() if "strategy" in job)
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert matrix["python"] == PYTHONS
    assert f'requires-python = ">={PYTHONS[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_releases_are_audited_and_signed() -> None:
    """Nothing is published without both; the list of hashes is what is signed."""
    release = read(ROOT / ".github" / "workflows" / "wheels.yml")["jobs"]["release"]
    assert "audit" in release["needs"]
    signing = [step for step in release["steps"] if "sigstore" in step.get("uses", "")]
    assert [step["with"]["inputs"] for step in signing] == ["dist/SHA256SUMS"]
    assert release["permissions"]["id-token"] == "write"


def test_notes_of_a_release() -> None:
    """Its part of the changes, with links that lead to its files; none without a heading."""
    changes = "## Next\n\nmore\n\n## 1.2.3\n\n[a](api.md#x) [b](https://example.org)\n\n## 1.2.2\n\nold\n"
    home = "https://example.org/owner/gguf-imagegen"
    found = notes(changes, "1.2.3", home)
    assert found == f"[a]({home}/blob/v1.2.3/docs/api.md#x) [b](https://example.org)\n"
    with pytest.raises(ValueError, match=r"no heading ## 1\.2$"):
        notes(changes, "1.2", home)
