"""A TOML file of settings. What is wrong in it is told with the file's name, and without its folder."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS: Mapping[object, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    tuple: ("a text, or a list of texts", (str, list)),
}
"""What a value of such a field is in the file; of any other, a text."""


class ConfigError(ValueError):
    """The file cannot be read, is no TOML, or has a key or a value that is no setting's."""


def read(path: Path, fields: Mapping[str, object]) -> dict[str, object]:
    """The values by field; `fields` are the types of all fields. Keys may have dashes, as flags do."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path.name}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path.name}: not valid TOML: {exc}") from None
    values: dict[str, object] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{path.name}: {_unknown(key, name, fields)}")
        if name in values:
            raise ConfigError(f"{path.name}: {key}: is given twice, with a dash and with an underscore")
        if fault := _fault(fields[name], value):
            raise ConfigError(f"{path.name}: {key}: must be {fault}")
        values[name] = value
    return values


def _unknown(key: str, name: str, fields: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, fields, 1)
    return f"there is no setting {key[:100]!r}" + (f"; do you mean {near[0]}?" if near else "")


def _fault(annotation: object, value: object) -> str:
    """What the value must be; "" if it is. TOML's true is no number here, as it would be in Python."""
    if get_origin(annotation) is UnionType:
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    words, kinds = KINDS.get(annotation) or KINDS.get(get_origin(annotation)) or ("a text", (str,))
    fits = isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)
    return "" if fits else words
