"""Pictures as numbers: patches in a basis of their own, and a code for each picture.

There are about 300 pictures, so that some 300 numbers tell them apart without loss. An image token has room
for 212 of them at a time: 129 stay, 83 are exchanged between the first decoding block and the second. A
code's components are the strongest principal components of all pictures, each brought to the same size,
since Q8_0 rounds them alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import pictures
from .latents import CHANNELS, FREE, Encoder
from .network import PLACES, SIDE
from .pictures import Floats
from .stream import KAPPA, KEPT, MASK_SCALE, MASKS, SWAPPED, zero_sum

USED = 4 * FREE  # numbers of a patch that pictures use
LIGHT = np.array([0.3, 0.59, 0.11])  # of red, green and blue in brightness
GREY = 0.8  # of shapes, before they get their colour
LIFT = 1 - GREY  # so that recolouring makes a shape exactly as asked
RELIEF = 0.25  # how much of a recoloured glyph's light and shade stays neutral
MASK_CARE = 0.6  # how much codes care for coverage


def patches(latents: Floats) -> Floats:
    """[.., 16, 16, 16] to [.., PLACES, USED], as sd.cpp cuts them: channel, row, column."""
    lead = latents.shape[:-3]
    n = len(lead)
    cut = latents.reshape(*lead, CHANNELS, SIDE, 2, SIDE, 2).transpose(
        *range(n), n + 1, n + 3, n, n + 2, n + 4
    )
    return np.asarray(cut.reshape(*lead, PLACES, 4 * CHANNELS)[..., :USED])


class Basis:
    """An orthonormal basis of patches whose first half a mirror leaves as it is and whose second
    half it negates.
    """

    def __init__(self, encoder: Encoder, shown: Floats) -> None:
        flip = np.zeros((USED, USED))
        for channel, row, column in np.ndindex(FREE, 2, 2):
            at = channel * 4 + row * 2
            flip[at + 1 - column, at + column] = encoder.parity[channel]
        _, spaces = np.linalg.eigh(flip)  # -1 first
        flat = shown.reshape(-1, USED).astype(np.float64)
        second = flat.T @ flat + flip @ (flat.T @ flat) @ flip
        rows, spread = [], []
        for space in (spaces[:, USED // 2 :], spaces[:, : USED // 2]):
            values, vectors = np.linalg.eigh(space.T @ second @ space)
            rows.append((space @ vectors[:, ::-1]).T)
            spread.append(np.sqrt(values[::-1].clip(0) / (2 * len(flat))))
        self.rows = np.concatenate(rows)  # [USED, USED]
        self.spread = np.concatenate(spread)  # root mean square along each
        self.even = USED // 2

    def __call__(self, patch: Floats) -> Floats:
        return np.asarray(patch @ self.rows.T)


class Pictures:
    """All pictures, and the parts that others are put together from, as patches in the basis."""

    def __init__(self, encoder: Encoder, sprites: Sequence[Floats]) -> None:
        """Sprites of the glyphs; the shapes follow them."""
        self.encoder = encoder
        grey = [pictures.drawn(shape, GREY) for shape in pictures.SHAPES]
        every = [*sprites, *grey]
        self.glyphs, self.count = len(sprites), len(every)
        raw = np.stack([patches(encoder.linear(sprite[..., :3] - sprite[..., 3:])) for sprite in every])
        covers = np.stack([self._channels(sprite[..., 3]) for sprite in every])
        grounds = np.random.default_rng(0).uniform(0, 1, (self.count, 3))
        on_grounds = raw + np.einsum("ikpu,ik->ipu", covers, 1 - grounds)
        self.basis = Basis(encoder, np.concatenate((raw, on_grounds)))
        self.shown = self.basis(raw)  # [count, PLACES, USED]: the picture on white, less white
        self.covers = self.basis(covers)  # [count, 3, PLACES, USED]: coverage in red, green and blue
        ones = np.ones((pictures.SIZE, pictures.SIZE), np.float32)
        self.full = self.basis(self._channels(ones))[:, 0]  # [3, USED] of a covered patch
        self.white = self.basis(patches(encoder(ones[..., None].repeat(3, -1))))[0]  # [USED]
        self._masks()

    def _channels(self, mask: Floats) -> Floats:
        """[3, PLACES, USED] of a mask in red, green and blue."""
        return np.stack(
            [patches(self.encoder.linear(mask[..., None] * one)) for one in np.eye(3, dtype=np.float32)]
        )

    def _masks(self) -> None:
        """Coverage in 39 components, which is nearly all of it: `masks` [count, PLACES, 41]
        times `mask_patches`.
        """
        flat = self.covers.transpose(0, 2, 1, 3).reshape(-1, 3 * USED)
        even = np.tile(np.arange(USED) < self.basis.even, 3)
        masks, parts = [], []
        for part, size in ((even, MASKS[0]), (~even, MASKS[1])):
            own = flat * part
            _, vectors = np.linalg.eigh(own.T @ own)
            turn = vectors[:, ::-1][:, : size - 1] @ zero_sum(size).T
            masks.append(own @ turn)
            parts.append(turn.T.reshape(size, 3, USED))
        self.masks = np.concatenate(masks, 1).reshape(self.count, PLACES, sum(MASKS)) * MASK_SCALE
        self.mask_patches = np.concatenate(parts) / MASK_SCALE  # [41, 3, USED]

    def light(self, channel: int) -> Floats:
        """[USED, USED]: what a patch has of brightness, all of it in one colour channel."""
        weight = self.encoder.weight[:FREE].astype(np.float64)
        brightness = np.einsum("pkc,k->pc", np.linalg.pinv(weight).reshape(64, 3, FREE), LIGHT)
        turned = weight.reshape(FREE, 64, 3)[..., channel] @ brightness
        return np.asarray(self.basis.rows @ np.kron(turned, np.eye(4)) @ self.basis.rows.T)


class Codes:
    """Codes [count, ..] of all pictures: `first` for the first decoding block, `later` for the others."""

    def __init__(self, known: Pictures, weight: Floats) -> None:
        n, w = known.count, weight[:, None]
        pixels, masks = known.shown.reshape(n, -1), known.masks.reshape(n, -1) / MASK_SCALE
        both = np.concatenate((pixels, masks * MASK_CARE), 1)
        kept = _strongest(both * w, KEPT - 1) @ both.T
        rest = _without(both, kept.T, w)
        swap = _strongest(rest * w, SWAPPED - 1)
        later = rest @ swap.T
        rest = _without(pixels, np.concatenate((kept.T, later), 1), w)
        first = rest @ _strongest(rest * w, SWAPPED - 1).T
        self.kept, self.swap_first, self.swap_later = (
            _levelled(part) @ zero_sum(part.shape[1] + 1).T for part in (kept.T, first, later)
        )
        self.first = np.concatenate((self.kept, self.swap_first), 1)
        self.later = np.concatenate((self.kept, self.swap_later), 1)
        self.whole = np.concatenate((self.first, self.swap_later), 1)
        for what, code, aim in (("pictures", self.whole, pixels), ("coverage", self.later, masks)):
            print(f"codes leave {(_without(aim, code, w) ** 2).sum() / (aim**2).sum():.4f} of the {what}")


def _strongest(rows: Floats, count: int) -> Floats:
    """[count, size]: principal directions of [n, size], by their Gram matrix."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return np.asarray((vectors / np.sqrt(values)).T @ rows)


def _without(aim: Floats, codes: Floats, weight: Floats) -> Floats:
    """What no linear map of the codes gives."""
    return np.asarray(aim - codes @ np.linalg.lstsq(codes * weight, aim * weight, rcond=1e-7)[0])


def _levelled(code: Floats) -> Floats:
    return np.asarray(code * (KAPPA / np.sqrt((code**2).mean(0))))
