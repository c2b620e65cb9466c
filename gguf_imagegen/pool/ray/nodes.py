"""Ray's own processes on this machine: `ray start` with the settings that our lanes need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

from gguf_imagegen.engines.process import with_package
from gguf_imagegen.machine import locks
from gguf_imagegen.machine.processes import apart, user_number
from gguf_imagegen.pool.ray.node_settings import without_secrets
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError, NotInstalled

RAY: Final = (
    sys.executable, "-c",
    "from gguf_imagegen.machine.processes import die_with_parent; die_with_parent(kindly=True);"
    " from ray.scripts.scripts import main; main()",
)  # fmt: skip
"""Its command line, which ends with us, and all of Ray's processes with it."""
LANE: Final = "imagegen_lane"
"""The resource of which a node has one for each device, and each lane takes one."""
UNREAD: Final = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What Ray would tell its dashboard, which is not started; an eighth of what events cost."""
PORT: Final = 6379
PORTS: Final = (
    "node-manager-port", "object-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port", "metrics-export-port",
)  # fmt: skip
"""Flags of `ray start` for ports that it chooses by chance otherwise; its workers and drivers have more."""
FEWEST_PORTS: Final = 30
"""Those, and one for each process of Ray, which are a lane's, the bridge, and a few that wait for work."""
STARTING: Final = 90.0
"""Seconds within which Ray's processes must be there; they take 5 on an idle machine."""
ANSWERING: Final = 3.0
STOPPING: Final = 15.0
TOKEN: Final = "cluster-token"
OBJECT_STORE: Final = 512 << 20
"""Bytes of shared memory: nothing but tasks and pictures on their way lies there."""


class ClusterFailed(ImagegenError):
    """The cluster cannot be started or joined; the message says why, and what to do."""

    status = 503
    code = "cluster_failed"


def require_ray() -> None:
    if find_spec("ray") is None:
        raise NotInstalled("Ray is not installed; get it with: pip install 'gguf-imagegen[cluster]'")


def environment(token: str | None) -> dict[str, str]:
    """For all processes that speak to the cluster; None for one without a token."""
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    clean = {name: value for name, value in without_secrets(os.environ).items() if name != "RAY_ADDRESS"}
    return {
        **clean,
        **auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # lanes see all GPUs, and show one to their engines
        "RAY_gcs_rpc_server_reconnect_timeout_s": "31536000",  # else a lost head ends all others in 60 s
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_worker_niceness": "0",  # engines have their own
        "RAY_worker_maximum_startup_concurrency": "4",
        **UNREAD,
    }


def token_of(settings: Settings, folder: Path | None = None) -> str | None:
    """As `known_token`; one is made in `folder` if none is there. None without any, or if none is used."""
    if settings.insecure_cluster:
        return None
    known = known_token(settings, folder)
    return known or (_new_token(folder / TOKEN) if folder is not None else None)


def known_token(settings: Settings, folder: Path | None) -> str | None:
    """As it is said, else as Ray's own variables say, else as it lies in `folder`."""
    if settings.cluster_token is not None:
        return settings.cluster_token.get_secret_value().strip()
    if said := os.environ.get("RAY_AUTH_TOKEN"):
        return said.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    for path in (Path(named) if named else None, folder and folder / TOKEN):
        if path is not None and path.is_file():
            return path.read_text(encoding="utf-8").strip()
    return None


def _new_token(path: Path) -> str:
    token = secrets.token_hex(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{token}\n")
    return token


def require_token(token: str | None, settings: Settings) -> None:
    if token is None and not settings.insecure_cluster:
        raise ClusterFailed(
            "a cluster needs a token: set --cluster-token (or GGUF_IMAGEGEN_CLUSTER_TOKEN) to the one of the"
            " head, or --insecure-cluster if everybody who can reach this network may run code on these"
            " machines"
        )


def ports_of(settings: Settings) -> list[str]:
    """Flags of `ray start` that keep its ports here, but for the head's own, in the range that is set.

    Raises ClusterFailed.
    """
    if settings.cluster_ports is None:
        return []
    first, last = map(int, settings.cluster_ports.split("-"))
    if not first + FEWEST_PORTS <= last + 1 <= 1 << 16:
        raise ClusterFailed(
            f"--cluster-ports {first}-{last}: name at least {FEWEST_PORTS} ports, none above 65535,"
            " such as 6400-6499"
        )
    named = [f"--{name}={port}" for port, name in enumerate(PORTS, first)]
    return [*named, f"--min-worker-port={first + len(PORTS)}", f"--max-worker-port={last}"]


def head_address(auto: str) -> str:
    """Where `auto[:ADDRESS][:PORT]` starts a cluster. Raises ClusterFailed."""
    said = auto.partition(":")[2]
    if said.isdecimal():
        said = f"{own_address()}:{said}"
    return checked_address(said or own_address())


def own_address() -> str:
    """The one that other machines reach, as far as the routes tell; without any, the first there is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("192.0.2.1", 1))  # sends nothing
        return str(sock.getsockname()[0])
    cards = (each for card in psutil.net_if_addrs().values() for each in card)
    known = (each.address for each in cards if each.family is socket.AF_INET)
    return next((address for address in known if not address.startswith("127.")), "127.0.0.1")


def is_here(address: str) -> bool:
    """Whether one of Ray's nodes of this cluster runs on this machine."""
    named = {f"--gcs-address={each}" for each in _spellings(address)}
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and named & set(process.info["cmdline"] or ()):
            return True
    return False


def _spellings(address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        return [address, f"{socket.gethostbyname(host)}:{port}"]
    return [address]


async def answers(address: str) -> bool:
    """Whether anything takes a connection there."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), ANSWERING)
    except (OSError, ValueError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def checked_address(address: str) -> str:
    """HOST:PORT; the port may be left out."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(PORT))
    if not host or not port.isdecimal():
        raise ClusterFailed(f"{address!r} is not an address of a cluster: use HOST or HOST:PORT")
    return f"{host}:{port}"


class RayNode:
    """`ray start --block` as a child: it ends with us, and all of Ray's processes here with it.

    `head` starts a cluster at this port, else the cluster at `address` is joined. `lanes` is how many devices
    are offered, `extra` further flags.
    """

    def __init__(
        self,
        address: str,
        environment: Mapping[str, str],
        *,
        head: bool = False,
        lanes: int = 0,
        extra: Sequence[str] = (),
    ) -> None:
        self.address = address
        self._environment = environment
        self._head = head
        self._lanes = lanes
        self._extra = extra
        self._process: Process | None = None
        self._lines: deque[str] = deque(maxlen=40)
        self._reading: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    async def start(self) -> None:
        """Returns when the node is there. Raises ClusterFailed.

        At the address of a head nothing answers yet.
        """
        if self._head:
            self._forget_the_last()
        try:
            async with locks.in_turn(_turn(), 2 * STARTING):
                await self._start()
        except locks.Held:
            raise ClusterFailed(
                "another of Ray's nodes on this machine does not get on with its start"
            ) from None

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *RAY, "start", "--block", *self._flags(), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
            env=with_package(self._environment), **apart(),
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))
        started = asyncio.create_task(self._started.wait())
        await asyncio.wait((started, self._reading), timeout=STARTING, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if not self._started.is_set():
            await self.stop()
            raise ClusterFailed(await self._why())

    async def wait(self) -> str:
        """Until Ray's processes have ended; what they said last."""
        assert self._process is not None
        await self._process.wait()
        return self._said()

    async def stop(self) -> None:
        if self._process is None:
            return
        if self._reading is not None and self._reading.done():  # a signal now would take its end from asyncio
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), ANSWERING)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOPPING)
        except asyncio.TimeoutError:
            for process in _family(self._process.pid):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if self._reading is not None:
            self._reading.cancel()

    def _forget_the_last(self) -> None:
        """Ray's note of the head that ended: with it, Ray takes a node of this machine for one that runs."""
        named = (self._environment.get(name) for name in ("RAY_TMPDIR", "TMPDIR"))
        for folder in filter(None, (*named, "/tmp")):
            note = Path(folder) / "ray" / "ray_current_cluster"
            with contextlib.suppress(OSError):
                if note.read_text(encoding="utf-8").strip() == self.address:
                    note.unlink()

    def _flags(self) -> list[str]:
        host, _, port = self.address.rpartition(":")
        where = (
            ["--head", f"--port={port}", f"--node-ip-address={host}", "--include-dashboard=false"]
            if self._head
            else [f"--address={self.address}"]
        )
        return [
            *where, "--num-cpus=0", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE}",
            f"--resources={json.dumps({LANE: self._lanes} if self._lanes else {})}", "--disable-usage-stats",
            "--include-log-monitor=false", *self._extra,
        ]  # fmt: skip

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._lines.append(line.decode(errors="replace").strip())
            if "Ray runtime started" in self._lines[-1]:
                self._started.set()

    def _said(self) -> str:
        """The last line that says something."""
        telling = [line for line in self._lines if "rror" in line or "ersion" in line]
        return (telling or [line for line in self._lines if line] or ["it said nothing"])[-1][:300]

    async def _why(self) -> str:
        if self._head:
            return f"Ray did not start at {self.address}: {self._said()}"
        if not await answers(self.address):
            return (
                f"nothing answers at {self.address}: start `gguf-imagegen serve --cluster auto` there,"
                " and open the port"
            )
        if "InvalidAuthToken" in self._said():
            return (
                f"{self.address} does not take this machine's token: set --cluster-token to the one in"
                " cluster-token of the state folder there"
            )
        if "ersion" in self._said():
            return f"{self.address} does not let this machine in: {self._said()}"
        return (
            f"{self.address} answers and does not let this machine in: most likely its token is another one"
            f" (--cluster-token); Ray says: {self._said()}"
        )


def _turn() -> Path:
    """Two nodes of one machine that start together take each other's names for files."""
    return Path(tempfile.gettempdir()) / f"gguf-imagegen-ray-{user_number()}.lock"


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    return []
