"""What a webhook is told at the end of a job, as Standard Webhooks 1.0.0 has it: no pixels, and no prompt.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec
from msgspec import Struct

from gguf_imagegen.jobs.job import Ended, Job, status_of


class Letter(Struct, frozen=True):
    """A message to `url` about the end of `job`, whose id is its own; `due` is the next attempt."""

    job: str
    url: str
    body: bytes
    written: float
    due: float
    attempts: int = 0


def letter_of(job: Job, end: Ended, now: float) -> Letter | None:
    """None where nobody wants one."""
    if job.hook is None:
        return None
    body = msgspec.json.encode(_message(job, end, now))
    return Letter(job.id, job.hook.url, body, now, now)


def _message(job: Job, end: Ended, now: float) -> dict[str, Any]:
    assert job.hook is not None
    base, status = job.hook.base, status_of(end)
    images = [
        {
            "index": image.index,
            "url": f"{base}/v1/images/files/{image.name}",
            "seed": image.seed,
            "width": image.width,
            "height": image.height,
        }
        for image in job.images
    ]
    data = {
        "id": job.id,
        "object": "job",
        "status": status,
        "operation": job.plan.operation,
        "model": job.plan.entry.id,
        "created": int(job.created),
        "url": f"{base}/v1/jobs/{job.id}",
        "data": images,
        "error": end.error.body()["error"] if end.error else None,
    }
    at = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds")
    return {"type": f"job.{status}", "timestamp": at.replace("+00:00", "Z"), "data": data}


def signed(letter: Letter, keys: Sequence[bytes], now: float) -> Mapping[str, str]:
    """The headers of an attempt at this time, with a signature by each of the keys."""
    at = str(int(now))
    content = b".".join((letter.job.encode(), at.encode(), letter.body))
    digests = (hmac.digest(key, content, hashlib.sha256) for key in keys)
    return {
        "webhook-id": letter.job,
        "webhook-timestamp": at,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }
