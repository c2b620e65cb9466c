"""`scripts/try_network`: what a cluster does over a network that is fast, slow, cut or closed; with figures.

Pictures are the embedded model's; all machines share the cores of this one.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from scripts.network.trial import COMMAND, PORTS, Answer, Trial, answer_of, events_of, trial, until

PNG: Final = b"\x89PNG"
LONG: Final[Mapping[str, Any]] = {"n": 4, "steps": 20}
"""A request that takes long enough to be disturbed."""
FORGOTTEN: Final = 10.0
"""Seconds within which a machine that says nothing is given up."""


def lan() -> None:
    """Behind firewalls that let in what docs/cluster.md names, without a route elsewhere or a name server."""
    with trial("alpha") as made:
        made.shield("front", "6379", "8080", PORTS)
        made.shield("alpha", PORTS)
        made.serve()
        wrong = made.network.machines["alpha"]
        made.node("alpha", token="0" * 64)
        until(lambda: "does not take this machine's token" in wrong.log.read_text(), "a word about the token")
        made.node("alpha")
        say(f"a node's lane is there after {made.wait_for('alpha'):.1f} s")
        say_answer(made, "the first picture")
        for _ in range(3):
            say_answer(made, "another")
        before = made.network.passed("alpha")
        events = events_of(made.asking(stream=True, partial_images=3, steps=20))
        sent = made.network.passed("alpha")[1] - before[1]
        previews = [size for kind, size in events if kind.endswith("partial_image")]
        assert previews, events
        assert events[-1][0].endswith("completed"), events
        say(f"a stream of 20 steps with {len(previews)} previews of {statistics.median(previews):.0f} bytes:"
            f" the node sent {sent} bytes")  # fmt: skip
        before = made.network.passed("alpha")
        time.sleep(10)
        idle = [now - then for now, then in zip(made.network.passed("alpha"), before, strict=True)]
        say(f"idle: {idle[0] / 10:.0f} bytes a second to the node, {idle[1] / 10:.0f} from it")


def files() -> None:
    """A model, and a LoRA, that only the node has."""
    with trial("alpha") as made:
        node = made.network.machines["alpha"]
        node.run("mkdir", "/tmp/models", "/tmp/loras")
        node.run(COMMAND, "make-test-model", "/tmp/models")
        node.run("touch", "/tmp/loras/style.safetensors")
        made.serve("--any-model")
        made.node("alpha", "--models-dir", "/tmp/models", "--lora-dir", "/tmp/loras")
        made.wait_for("alpha")
        answer = made.ask(model="tiny-random", size="64x64", steps=2)
        assert answer.pictures[0].startswith(PNG), answer
        say(f"a model that only the node has: {answer.seconds:.1f} s")
        answer = made.ask(lora=[{"name": "style"}])
        assert (answer.status, "it is in the --lora-dir of alpha" in answer.error) == (400, True), answer
        say(f"a LoRA that only the node has: {answer.error}")


def slow() -> None:
    """The node's cable is long and loses packets, then narrow."""
    for words, cable in (
        ("20 ms each way, 1 % lost", {"delay": 0.02, "loss": 0.01}),
        ("10 Mbit/s", {"rate": 1e7}),
    ):
        with trial("alpha") as made:
            made.network.plug("alpha", **cable)
            made.serve()
            made.node("alpha")
            say(f"{words}: a node's lane is there after {made.wait_for('alpha'):.1f} s")
            say_answer(made, f"{words}: the first picture")
            say_answer(made, f"{words}: another")
            say(f"{words}: lanes lost: {made.cluster['lanes_lost']}")


def cuts() -> None:
    """The cable of the node that draws is cut for 3 s, for 60 s, and for good with the machine's power."""
    with trial("alpha", "beta") as made:
        made.serve()
        made.node("alpha")
        made.node("beta")
        made.wait_for("alpha", "beta")
        _cut(made, 3)
        _cut(made, 60)
        client = made.asking(**LONG)
        name = made.drawing()
        made.network.cut(name)
        made.network.machines[name].kill()
        say_whole(answer_of(client), "a node without power")


def _cut(made: Trial, seconds: float) -> None:
    client = made.asking(**LONG)
    name = made.drawing()
    made.network.cut(name)
    began = time.monotonic()
    if seconds > FORGOTTEN:
        until(lambda: name not in made.lanes, "that the lane is given up")
        say(f"cut for {seconds:g} s: given up after {time.monotonic() - began:.1f} s")
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    made.network.mend(name)
    say(f"cut for {seconds:g} s: both lanes are there {made.wait_for('alpha', 'beta'):.1f} s later")
    say_whole(answer_of(client), f"cut for {seconds:g} s")


def head() -> None:
    """Ray's head is killed while a node draws."""
    with trial("alpha") as made:
        made.serve()
        made.node("alpha")
        made.wait_for("alpha")
        client = made.asking(**LONG)
        made.drawing()
        made.front.run("pkill", "-KILL", "gcs_server")
        began = time.monotonic()
        until(lambda: made.cluster["status"] != "joined", "a word about the head")
        until(lambda: made.cluster["status"] == "joined" and "alpha" in made.lanes, "the head, and the node")
        say(f"the head was killed: it and the node's lane are back after {time.monotonic() - began:.1f} s")
        say_whole(answer_of(client), "the head was killed")


SCENARIOS: Final[Mapping[str, Callable[[], None]]] = {
    "lan": lan, "files": files, "slow": slow, "cuts": cuts, "head": head,
}  # fmt: skip


def say(words: str) -> None:
    print(f"  {words}", flush=True)


def say_answer(made: Trial, words: str, **fields: object) -> None:
    before = made.network.passed("alpha")
    answer = made.ask(**fields)
    to, sent = (now - then for now, then in zip(made.network.passed("alpha"), before, strict=True))
    (picture,) = answer.pictures
    assert picture.startswith(PNG), answer
    say(f"{words}: {answer.seconds:.2f} s; {len(picture)} bytes of PNG, {to} to the node, {sent} from it")


def say_whole(answer: Answer, words: str) -> None:
    assert len(answer.pictures) == LONG["n"], answer
    assert len(set(answer.pictures)) == LONG["n"], "equal pictures for several seeds"
    told = "; ".join(answer.body.get("warnings", ())) or "no warning"
    say(f"{words}: {LONG['n']} pictures in {answer.seconds:.1f} s, {told}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/try_network", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "scenario", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS)
    )
    wanted = parser.parse_args().scenario or SCENARIOS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in wanted:
        print(f"{name}: {SCENARIOS[name].__doc__}", flush=True)
        SCENARIOS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
