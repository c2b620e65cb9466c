"""With `--all` alone, as root: a cluster over a network of namespaces: cables slow or cut, ports closed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.network.__main__ import SCENARIOS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.posix


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_network(scenario: str) -> None:
    """What docs/cluster.md says of it holds."""
    subprocess.run([ROOT / "scripts" / "try_network", scenario], check=True)
