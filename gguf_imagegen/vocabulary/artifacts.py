"""What comes out of an engine, before it is made into a file."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct


class RawImage(Struct, frozen=True, tag=True):
    """8-bit pixels in rows: `channels` is 3 (RGB) or 1 (mask: 255 = repaint)."""

    width: int
    height: int
    channels: Literal[1, 3]
    data: bytes

    def without_pixels(self) -> RawImage:
        """What is left to say of it when there is nothing more to draw."""
        return RawImage(self.width, self.height, self.channels, b"")

    def __repr__(self) -> str:
        return f"RawImage({self.width}x{self.height}x{self.channels})"


Artifact: TypeAlias = RawImage
"""A still picture is one kind; others join as members of a union, told apart by their tags."""
