"""Which tokens mean what: names of pictures in several languages, colours, and the words between them.

A name's tokens are fetched together and their codes add up. Codes of tokens are solved so that every name
adds up to its picture: "dog" to the dog, "hot" and "dog" to the hot dog, "hot" and "face" to the hot face.
There are more tokens than names, so this can nearly always be had. Other forms of a word ("Dogs") share the
vector of the one that was solved.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import pictures, vocabulary
from .pictures import Floats
from .stream import IDS
from .tokens import PAD, encoding, kin, plurals, single, spelled, template

EMOJIBASE = "emojibase-data@17.0.0"  # npm, MIT
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "ja", "zh")
LONGEST = 3  # tokens of a name in another language
ROOM = 1420  # tokens with a unit of their own in the text's MLP
CERTAIN = 100.0  # weight of English names
MET = 0.05  # how far a name may be off its picture's code
GROUND_WORD, ON_WORD = "background", "on"
TALK = """
a an the one some my your two three please draw me show and or with on in at to is of
picture drawing photo image painting emoji icon sketch background lovely cute beautiful nice very happy
un une uno una ein eine der die das le la les el il lo en ett et und y e
""".split()  # noqa: SIM905 - what people say around a name, in lines as they belong together
COLOURS_ABROAD = {
    "red": "rot rote rotes roter rouge rojo roja rosso vermelho rood röd",
    "orange": "naranja arancione laranja oranje",
    "yellow": "gelb gelbe gelbes gelber jaune amarillo amarilla giallo amarelo geel gul",
    "green": "grün grüne grünes grüner vert verte verde groen grön",
    "cyan": "turquoise türkis teal",
    "blue": "blau blaue blaues blauer bleu bleue azul blu blauw blå",
    "purple": "lila violett violet púrpura morado viola roxo paars",
    "pink": "rosa",
    "brown": "braun braune braunes brun brune marrón marrone marrom bruin",
    "gray": "grey grau graue gris grigio cinza grijs grå",
    "black": "schwarz schwarze schwarzes noir noire negro negra nero preto zwart svart",
    "white": "weiß weiße weißes weißer blanc blanche blanco blanca bianco branco wit vit",
}


@dataclass(frozen=True, slots=True)
class Concept:
    """One glyph: what it is called in English, best name first, and elsewhere."""

    character: str
    names: tuple[str, ...]
    abroad: tuple[str, ...]


def concepts(folder: Path) -> tuple[Concept, ...]:
    """The vocabulary's glyphs in its order; names in other languages are fetched from npm at first use."""
    english = _labels(folder, "en")
    points = {label: point for point, label in english.items()}
    labels = {language: _labels(folder, language) for language in LANGUAGES}
    found = []
    for unicode, names in vocabulary.entries():
        if not unicode:
            continue
        same = [points[unicode], *(points[name] for name in names if name in points)]
        abroad = {labels[language].get(point, "") for language in LANGUAGES for point in same}
        point = int(points[unicode].split("-")[0], 16)
        found.append(Concept(chr(point), names, tuple(sorted(abroad - {"", *names}))))
    return tuple(found)


def _labels(folder: Path, language: str) -> dict[str, str]:
    """What each emoji is called, by code points."""
    archive = folder / f"{EMOJIBASE.replace('@', '-')}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", EMOJIBASE], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"package/{language}/data.json")
        assert member is not None
        return {entry["hexcode"]: entry["label"] for entry in json.load(member)}


class Words:
    """Codes [size] by token, and the tokens of colours and shapes; `known` lists every name that works."""

    def __init__(self, found: tuple[Concept, ...], whole: Floats) -> None:
        """`whole` [pictures, size]: codes of the glyphs, then of the shapes."""
        self.found, self.whole = found, whole
        self.colours = {token: name for name in pictures.COLOURS if (token := single(name)) is not None}
        self.shapes = {token: name for name in pictures.SHAPES if (token := single(name)) is not None}
        self.ground, self.on = spelled(GROUND_WORD)[0], spelled(ON_WORD)[0]
        self.alike: dict[int, int] = {}
        """Tokens that share another's vector."""
        self._colours_abroad()
        before, after = template()
        self.neutral = {
            PAD,
            *before,
            *after,
            *(t for word in TALK for form in (word, word.capitalize()) for t in spelled(form)),
            *spelled("x,")[1:],
        }
        self.neutral -= set(self.colours) | set(self.shapes)
        self.codes: dict[int, Floats] = {}
        self.known: list[str] = []
        self._names()
        self._kin()
        self._more()
        self._kin()

    def _kin(self) -> None:
        for token in [*self.codes, *self.colours, self.ground, self.on]:
            for other in kin(token):
                if other not in self.codes and other not in self.colours and other not in self.neutral:
                    self.alike.setdefault(other, token)

    def listed(self) -> str:
        """Every name, and after an empty line what is understood beside names
        (`gguf_imagegen.catalog.vocabulary`).
        """
        own = {name.casefold() for name in self.known}
        colours = [*pictures.COLOURS, *(word for line in COLOURS_ABROAD.values() for word in line.split())]
        return "\n".join(sorted(own)) + "\n\n" + "\n".join(sorted({*colours, *TALK})) + "\n"

    @property
    def named(self) -> list[int]:
        """Tokens with an identity of their own, in order."""
        return sorted({*self.codes, *self.colours})

    def _colours_abroad(self) -> None:
        for name, others in COLOURS_ABROAD.items():
            own = single(name)
            assert own is not None, name
            for other in others.split():
                for form in (other, other.capitalize()):
                    if (token := single(form)) is not None and token not in self.colours:
                        self.alike[token] = own

    def _names(self) -> None:
        """Least squares over the tokens of all names: English ones exactly, others while there is room."""
        wanted = [(item, name, CERTAIN) for item, c in enumerate(self.found) for name in c.names]
        taken = {name.casefold() for _, name, _ in wanted} | set(TALK)
        abroad = [(item, name, 1.0) for item, c in enumerate(self.found) for name in c.abroad]
        wanted += sorted(abroad, key=lambda one: len(spelled(one[1])))  # short names are the everyday ones
        used: dict[int, int] = {}
        rows: list[tuple[int, str, float, list[int]]] = []
        for item, name, weight in wanted:
            own = self._telling(name)
            new = [token for token in own if token not in used]
            if weight < CERTAIN:
                full = len(used) + len(new) > ROOM
                if (
                    full
                    or not own
                    or len(own) > LONGEST
                    or name.casefold() in taken
                    or not all(map(_whole, own))
                ):
                    continue
                taken.add(name.casefold())
            rows.append((item, name, weight, own))
            for token in new:
                used.setdefault(token, len(used))
        matrix, aims = np.zeros((len(rows), len(used))), self.whole[[item for item, *_ in rows]]
        for row, (*_, own) in enumerate(rows):
            np.add.at(matrix[row], [used[token] for token in own], 1)
        weights = np.array([weight for _, _, weight, _ in rows])[:, None]
        solved = np.linalg.lstsq(matrix * weights, aims * weights, rcond=1e-9)[0]
        off = np.sqrt(np.square(matrix @ solved - aims).mean(1) / np.square(aims).mean(1))
        met = off < MET
        print(f"{met.sum()} of {len(rows)} names met, {len(wanted)} wanted, {len(used)} tokens")
        self.known += [name for (_, name, *_), ok in zip(rows, met, strict=True) if ok]
        self.codes = {token: solved[column] for token, column in used.items()}
        for token, shape in self.shapes.items():
            self.codes[token] = self.whole[len(self.found) + pictures.SHAPES.index(shape)]
            self.known.append(shape)

    def _more(self) -> None:
        """Plurals: one token that no other name has carries the picture, the others carry nothing."""
        wanted = [
            (item, form) for item, c in enumerate(self.found) for name in c.names for form in plurals(name)
        ]
        owners: dict[int, set[int]] = {}
        for item, name in wanted:
            for token in spelled(name):
                owners.setdefault(token, set()).add(item)
        for item, name in wanted:
            own = spelled(name)
            if self._says(own, item):
                self.known.append(name)
            elif not any(self._means(token) for token in own):
                free = [token for token in own if owners[token] == {item} and token not in self.neutral]
                if free:
                    self._carry(free[0], item)
                    self.known.append(name)

    def _carry(self, token: int, item: int) -> None:
        """Give a token a picture: the vector of a token that has it already, else one of its own."""
        for name in self.found[item].names:
            own = self._telling(name)
            if len(own) == 1 and np.allclose(self.codes[own[0]], self.whole[item], atol=1e-3):
                self.alike[token] = own[0]
                return
        self.codes[token] = self.whole[item]

    def _says(self, own: Iterable[int], item: int) -> bool:
        codes = [self.codes[self.alike.get(t, t)] for t in own if self.alike.get(t, t) in self.codes]
        return bool(codes) and np.allclose(sum(codes), self.whole[item], atol=1e-3)

    def _means(self, token: int) -> bool:
        return token in self.alike or token in self.codes or token in self.colours

    def _telling(self, name: str) -> list[int]:
        """A name's tokens without those that always mean something else, or nothing."""
        other = self.neutral | self.colours.keys() | self.shapes.keys() | self.alike.keys()
        return [token for token in spelled(name) if token not in other]


def _whole(token: int) -> bool:
    """Whether a token is letters, not part of one."""
    return "\ufffd" not in encoding().decode([token])


def identities(named: list[int], seed: int = 0) -> dict[int, Floats]:
    """Unit vectors far apart from each other, one for each token."""
    rng = np.random.default_rng(seed)
    found, limit = np.zeros((0, IDS)), 0.40
    while len(found) < len(named):
        drawn = rng.normal(size=(256, IDS))
        before = len(found)
        for one in drawn / np.linalg.norm(drawn, axis=1, keepdims=True):
            if len(found) < len(named) and (found @ one).max(initial=-1) < limit:
                found = np.concatenate((found, one[None]))
        if len(found) - before < 3:
            limit += 0.01
    print(f"{len(named)} identities, cosine below {limit:.2f}")
    return dict(zip(named, found, strict=True))
