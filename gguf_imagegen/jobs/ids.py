"""Ids of jobs and sets: they cannot be guessed, and may say whose they are."""

from __future__ import annotations

import secrets


def draw_id(kind: str, server: str | None = None) -> str:
    """`job_HEX`; of a server with a name `job_NAME-HEX`, which a balancer can route by its beginning."""
    return f"{kind}_{f'{server}-' if server else ''}{secrets.token_hex(12)}"
