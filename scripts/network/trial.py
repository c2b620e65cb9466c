"""A cluster on machines of their own: a server, nodes, and a client on a machine that is neither."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from scripts.network.machines import Machine, Network

COMMAND: Final = Path(sys.executable).parent / "gguf-imagegen"
KEY: Final = "key-of-the-trial"
PORTS: Final = "6400-6439"
PATIENCE: Final = 240.0
FIREWALL: Final = """table inet trial {{
chain input {{
  type filter hook input priority 0; policy drop;
  iif lo accept; ct state established,related accept; tcp dport {{ {ports} }} accept;
}}
}}
"""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """`body` is empty where no JSON came."""

    status: int
    body: dict[str, Any]
    seconds: float

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(each["b64_json"]) for each in self.body.get("data", ())]

    @property
    def error(self) -> str:
        return str((self.body.get("error") or {}).get("message", ""))


class Trial:
    """With no device of its own the server needs a node for every picture."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def front(self) -> Machine:
        return self.network.machines["front"]

    def serve(self, *flags: str | Path) -> None:
        """The first command of docs/cluster.md, and until it has a cluster."""
        self.front.start(
            COMMAND, "serve", "--cluster", "auto", "--host", "0.0.0.0", "--api-key", KEY, "--devices", "none",
            "--cluster-ports", PORTS, *flags,
        )  # fmt: skip
        until(lambda: self.cluster.get("status") == "joined", "a cluster")

    def node(self, name: str, *flags: str | Path, token: str = "") -> None:
        """The second one, on this machine."""
        self.network.machines[name].start(
            COMMAND, "node", "--head", "front", "--cluster-token", token or self.token,
            "--cluster-ports", PORTS, *flags,
        )  # fmt: skip

    def shield(self, name: str, *ports: str) -> None:
        """A firewall that lets nothing in but for these ports and what was asked for."""
        machine = self.network.machines[name]
        rules = FIREWALL.format(ports=", ".join(ports))
        subprocess.run(machine.words("nft", "-f", "-"), input=rules, text=True, check=True)

    @property
    def token(self) -> str:
        (found,) = self.front.run("find", "/tmp", "-name", "cluster-token").split()
        return self.front.run("cat", found).strip()

    @property
    def health(self) -> dict[str, Any]:
        """Empty while the server does not answer."""
        text = self.front.run("curl", "-s", "-m", "5", "http://127.0.0.1:8080/health", check=False)
        found: dict[str, Any] = json.loads(text or "{}")
        return found

    @property
    def cluster(self) -> dict[str, Any]:
        return self.health.get("cluster") or {}

    @property
    def lanes(self) -> dict[str, dict[str, Any]]:
        """By name of the node; each has one."""
        return {lane["name"].partition("/")[0]: lane for lane in self.health.get("lanes", ())}

    def wait_for(self, *nodes: str) -> float:
        """Until these have a lane, and no others; returns the seconds."""
        began = time.monotonic()
        until(lambda: set(self.lanes) == set(nodes), f"lanes of {', '.join(nodes)}")
        return time.monotonic() - began

    def asking(self, *, stream: bool = False, **fields: Any) -> subprocess.Popen[str]:
        """A client on the way to its pictures."""
        body = {"prompt": "a red apple", "size": "256x256", "steps": 8, "seed": 5, "stream": stream, **fields}
        return subprocess.Popen(
            self.network.machines["client"].words(
                "curl", "-sN", "-m", str(PATIENCE), "-w", "\n%{http_code} %{time_total}",
                "-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json",
                "-d", json.dumps(body),
                "http://front:8080/v1/images/generations",
            ),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **fields: Any) -> Answer:
        return answer_of(self.asking(**fields))

    def drawing(self) -> str:
        """The node that draws, once one does."""
        return until(
            lambda: next((name for name, lane in self.lanes.items() if lane["status"] == "running"), ""),
            "work on a node",
        )


def answer_of(client: subprocess.Popen[str]) -> Answer:
    text, _ = client.communicate(timeout=PATIENCE + 10)
    body, _, end = text.rpartition("\n")
    status, seconds = end.split()
    try:
        return Answer(int(status), json.loads(body), float(seconds))
    except ValueError:
        return Answer(int(status), {}, float(seconds))


def events_of(client: subprocess.Popen[str]) -> list[tuple[str, int]]:
    """Kinds of the events of a stream, and their bytes."""
    text, _ = client.communicate(timeout=PATIENCE + 10)
    events = re.findall(r"^event: (\S+)\ndata: (.*)$", text, re.MULTILINE)
    return [(kind, len(data)) for kind, data in events]


def until(look: Callable[[], Result], what: str) -> Result:
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.2)
    return found


@contextmanager
def trial(*nodes: str) -> Iterator[Trial]:
    """With these nodes' machines switched on; after a fault the last lines of all logs are printed."""
    with TemporaryDirectory() as folder:
        network = Network(Path(folder), "front", *nodes, "client")
        try:
            yield Trial(network)
        except BaseException:
            for log in sorted(network.folder.glob("*.log")):
                print(f"-- {log.stem}", *log.read_text().splitlines()[-15:], sep="\n", file=sys.stderr)
            raise
        finally:
            network.close()
