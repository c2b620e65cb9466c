"""The spool: one file for equal bytes, there as long as somebody needs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gguf_imagegen.jobs.spool import Spool


def test_what_is_put_can_be_got(tmp_path: Path) -> None:
    """Once for equal bytes, under their hash, for the owner only."""
    spool = Spool(tmp_path / "spool")
    assert spool.put(b"one") == spool.put(b"one") == hashlib.sha256(b"one").hexdigest()
    assert spool.get(spool.put(b"two")) == b"two"
    files = list((tmp_path / "spool").iterdir())
    assert len(files) == 2
    assert {path.stat().st_mode & 0o077 for path in (*files, tmp_path / "spool")} == {0}
    with pytest.raises(OSError, match=r"."):
        spool.get("0" * 64)


def test_a_sweep_takes_what_nobody_needs(tmp_path: Path) -> None:
    """But not what has just been put: its ticket is on the way. It also takes what is half written."""
    spool = Spool(tmp_path)
    spool.sweep(())
    needed, other = spool.put(b"needed"), spool.put(b"other")
    (tmp_path / ".half.part").write_bytes(b"h")
    spool.sweep({needed})
    assert spool.get(other) == b"other"
    spool.sweep({needed}, age=0)
    assert [path.name for path in tmp_path.iterdir()] == [needed]
