"""Machines that are none: namespaces of Linux with a network, a name, processes and folders of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = Path(sys.executable).parent / "gguf-imagegen"
SETUP: Final = """
mount --make-rprivate / && mount -t proc proc /proc
mount -t tmpfs tmp /tmp && mount -t tmpfs shm /dev/shm
printf '127.0.0.1 localhost\\n%s\\n' "$2" >/tmp/hosts && mount --bind /tmp/hosts /etc/hosts
echo 'nameserver 127.0.0.1' >/tmp/names && mount --bind /tmp/names /etc/resolv.conf
hostname "$1" && echo ready
read -r _
"""
"""Ends, and all that runs there, with what holds the other end of its stdin."""
UNPLUGGED: Final = ("--net",)
ALONE: Final = (*UNPLUGGED, "--uts", "--ipc", "--pid", "--mount")
STARTING: Final = 10.0


class Namespace:
    """Exists until it is killed, or this process ends."""

    def __init__(self, name: str, hosts: str, apart: tuple[str, ...]) -> None:
        self.name = name
        self._apart = apart
        setup = SETUP if apart == ALONE else "echo ready; read -r _"
        self._process = subprocess.Popen(
            ["unshare", *apart, "--fork", "--kill-child", "bash", "-euc", setup, "bash", name, hosts],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"there is no namespace for {name}")
        (inside,) = psutil.Process(self._process.pid).children()
        self.pid = inside.pid

    def words(self, *line: str | Path) -> list[str]:
        """The command line that runs this one there."""
        return ["nsenter", "-t", str(self.pid), *self._apart, "--", *map(str, line)]

    def run(self, *line: str | Path, check: bool = True) -> str:
        """What it prints. Raises CalledProcessError."""
        done = subprocess.run(
            self.words(*line), check=check, stdout=subprocess.PIPE, text=True, timeout=60, cwd="/"
        )
        return done.stdout

    def ip(self, *words: str) -> str:
        """As `ip` does there; the numbers of processes that it takes are this side's."""
        line = ["nsenter", "-t", str(self.pid), "--net", "--", "ip", *words]
        return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout

    def kill(self) -> None:
        """It, and all that runs there, as without power."""
        self._process.kill()
        self._process.communicate()


class Machine(Namespace):
    """One on a network; what it is told to run is told in a file."""

    def __init__(self, name: str, address: str, network: Network) -> None:
        super().__init__(name, "\n".join(f"{at} {each}" for each, at in network.addresses.items()), ALONE)
        self.address = address
        self._folder = network.folder

    def start(self, *line: str | Path) -> subprocess.Popen[bytes]:
        """With a home of its own, and what it says in the log of this machine."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.words("env", "HOME=/tmp", "COLUMNS=200", *line), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, cwd="/",
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self._folder / f"{self.name}.log"


class Network:
    """A switch, and machines on it; `folder` gets their logs. Addresses are 10.77.0.1 and on."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self.machines: dict[str, Machine] = {}
        self._slow: dict[str, subprocess.Popen[bytes]] = {}
        self._switch = Namespace("switch", "", UNPLUGGED)
        self._switch.ip("link", "add", "switch", "type", "bridge")
        self._switch.ip("link", "set", "switch", "up")
        for name in names:
            self.add(name)

    def add(self, name: str) -> Machine:
        """One that is switched on, with a fast cable."""
        made = self.machines[name] = Machine(name, self.addresses[name], self)
        self.plug(name)
        return made

    def plug(self, name: str, *, delay: float = 0.0, loss: float = 0.0, rate: float = 0.0) -> None:
        """Connect a machine, by another cable than before if it has one: see `cable`."""
        machine = self.machines[name]
        self.unplug(name)
        if delay or loss or rate:
            line = [sys.executable, "-m", "scripts.network.cable", name, *map(str, (delay, loss, rate))]
            self._slow[name] = subprocess.Popen(self._switch.words(*line), cwd=ROOT)
            self._wait_for(f"far-{name}")
            self._switch.ip("link", "set", f"far-{name}", "netns", str(machine.pid), "name", "eth0")
        else:
            self._switch.ip(
                "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)
            )
        self._switch.ip("link", "set", name, "master", "switch", "up")
        machine.ip("link", "set", "lo", "up")
        machine.ip("addr", "add", f"{machine.address}/24", "dev", "eth0")
        machine.ip("link", "set", "eth0", "up")

    def unplug(self, name: str) -> None:
        """For good; `cut` keeps the machine's address."""
        if slow := self._slow.pop(name, None):
            slow.kill()
            slow.wait()
        elif f" {name}@" in self._switch.ip("link"):
            self._switch.ip("link", "del", name)

    def cut(self, name: str) -> None:
        self._switch.ip("link", "set", name, "down")

    def mend(self, name: str) -> None:
        self._switch.ip("link", "set", name, "up")

    def passed(self, name: str) -> tuple[int, int]:
        """Bytes to this machine and from it, since it was plugged in."""
        (port,) = json.loads(self._switch.ip("-s", "-j", "link", "show", name))
        return port["stats64"]["tx"]["bytes"], port["stats64"]["rx"]["bytes"]

    def close(self) -> None:
        for machine in self.machines.values():
            machine.kill()
        for slow in self._slow.values():
            slow.kill()
            slow.wait()
        self._switch.kill()

    def _wait_for(self, port: str) -> None:
        deadline = time.monotonic() + STARTING
        while f" {port}:" not in self._switch.ip("link"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cable {port} is not there")
            time.sleep(0.05)
