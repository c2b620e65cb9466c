"""sd-server's times of one picture: it tells them in its log only."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

DEADLINE = 1800.0
TOLD = {
    "prompt": r"get_learned_condition completed, taking ([\d.]+)s",
    "sampling": r"\bsampling completed, taking ([\d.]+)s",
    "decode": r"decode_first_stage completed, taking ([\d.]+)s",
}


def server_times(binary: Path, model: Path, size: int, steps: int, threads: int) -> dict[str, float]:
    """Seconds of the clock; the server makes one small picture before, to warm up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(binary), "--model", str(model), "--threads", str(threads), "--listen-port", str(port)]
    log = Path(f"{binary}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=binary.parent)
        try:
            ask(port, 64, 1)
            begin = log.stat().st_size
            began = time.perf_counter()
            ask(port, size, steps)
            picture = time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
    return times_in(log.read_text(errors="replace")[begin:], steps) | {"picture": picture}


def times_in(log: str, steps: int) -> dict[str, float]:
    """Seconds by part, out of the log of one picture."""
    found = {part: float(re.findall(pattern, log)[-1]) for part, pattern in TOLD.items()}
    return {"step": found["sampling"] / steps, "decode": found["decode"], "prompt": found["prompt"]}


def ask(port: int, size: int, steps: int) -> None:
    """One picture; waits until the server listens."""
    extra = {"seed": 1, "sample_params": {"sample_steps": steps, "guidance": {"txt_cfg": 1.0}}}
    words = f"a lighthouse<sd_cpp_extra_args>{json.dumps(extra)}</sd_cpp_extra_args>"
    body = json.dumps({"prompt": words, "size": f"{size}x{size}"}).encode()
    url = f"http://127.0.0.1:{port}/v1/images/generations"
    give_up = time.monotonic() + DEADLINE
    while True:
        try:
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=DEADLINE) as answer:
                answer.read()
                return
        except (urllib.error.HTTPError, TimeoutError):
            raise
        except urllib.error.URLError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
