"""A real server that is killed, and the next one on the same port: streams, retries and pictures go on."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.conftest import DEADLINE, ServerProcess
from tests.survival import GENERATIONS, Answer, Client, client_of, client_of_mortal, eventually

pytestmark = pytest.mark.posix

Serve = Callable[..., ServerProcess]
SET: dict[str, Any] = {"prompt": "a", "steps": 12, "size": "128x128", "seed": 11, "n": 3}


def follow(url: str, job: str, last: int | None = None) -> subprocess.Popen[bytes]:
    """`curl -N` on the events of a job."""
    header = [] if last is None else ["-H", f"Last-Event-ID: {last}"]
    command = ["curl", "-sN", "--max-time", str(DEADLINE), *header, f"{url}/v1/jobs/{job}/events"]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def frames(curl: subprocess.Popen[bytes], until: str) -> list[dict[str, Any]]:
    """The frames with their ids, to the first whose type ends with `until`."""
    found: list[dict[str, Any]] = []
    id = -1
    assert curl.stdout is not None
    for line in curl.stdout:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "id":
            id = int(value)
        elif name == "data" and value.startswith("{"):
            found.append({"id": id, **json.loads(value)})
            if str(found[-1].get("type")).endswith(until):
                break
    return found


def ended(curl: subprocess.Popen[bytes]) -> None:
    curl.kill()
    curl.communicate()


async def picture(client: Client, url: str) -> bytes:
    async with client.session.get(url) as answer:
        assert answer.status == 200
        return await answer.read()


async def test_kill_in_the_middle(serve: Serve, tmp_path: Path) -> None:
    """`curl -N` goes on with Last-Event-ID: ids rise, no picture comes twice or is made twice, and all have
    the addresses and bytes of a run that nobody interrupted. An SDK that tries again gets the job it had.
    """
    flags = ("--state-dir", str(tmp_path / "state"))
    first = serve(*flags)
    port = str(urlsplit(first.url).port)
    sdk = openai.AsyncOpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=10)
    async with client_of_mortal(first) as client:
        answer = await client.send(
            "POST", GENERATIONS, json={**SET, "response_format": "url"}, headers={"Prefer": "respond-async"}
        )
        job = answer.body["id"]
        asking = asyncio.create_task(sdk.images.generate(prompt="b", size="auto", extra_body={"seed": 5}))
        asked = await client.newest_job(but=job)
        curl = follow(first.url, job)
        seen = await asyncio.to_thread(frames, curl, "completed")
        made = (await client.job(job))["data"]
        first.kill()
        ended(curl)
    second = serve(*flags, "--port", port)
    async with client_of(second) as client:
        curl = follow(second.url, job, seen[-1]["id"])
        rest = await asyncio.to_thread(frames, curl, "succeeded")
        ended(curl)
        after = await client.job(job)
        read = [await picture(client, item["url"]) for item in after["data"]]
        whole = await client.make(**SET)
        retried = await asking
        assert (await client.job(asked["id"]))["status"] == "succeeded"
        assert len((await client.get("/v1/jobs")).body["data"]) == 3
    ids = [frame["id"] for frame in (*seen, *rest)]
    assert ids == sorted(set(ids))
    pictures = [frame for frame in (*seen, *rest) if frame["type"].endswith("completed")]
    assert [frame["index"] for frame in pictures] == [0, 1, 2]
    assert [item["url"] for item in made] == [item["url"] for item in after["data"]][: len(made)]
    assert [frame["b64_json"] for frame in pictures] == [item["b64_json"] for item in whole.body["data"]]
    assert read == [base64.b64decode(frame["b64_json"]) for frame in pictures]
    assert retried.data is not None
    assert retried.data[0].b64_json
    await sdk.close()


async def test_a_disk_that_takes_no_more(serve: Serve, tmp_path: Path) -> None:
    """New jobs are refused, what runs ends with its pictures, and all is well when there is room again."""
    server = serve("--state-dir", str(tmp_path / "state"))
    async with client_of(server) as client:
        async with await client.stream(steps=20, size="128x128") as stream:
            await stream.until_phase("sampling", step=1)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            for path in (GENERATIONS, "/v1-openai/images/generations"):
                refused = await client.make(path)
                assert refused.status == 507
                assert "make room" in str(refused.body)
                assert str(tmp_path) not in str(refused.body)
            assert (await stream.end()).data == "[DONE]"
        job = await client.job(stream.job)
        assert job["status"] == "succeeded"
        assert await picture(client, job["data"][0]["url"])
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, infinite)

        async def taken() -> Answer | None:
            answer = await client.make()
            return answer if answer.status == 200 else None

        await eventually("jobs are taken again", taken)
        assert "cannot write to the journal" in server.log()
        assert "the journal can be written again" in server.log()
