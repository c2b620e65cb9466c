"""Command-line options made from `Settings`: each field is a flag, a variable and a key of a file, once."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from gguf_imagegen.machine.config_file import ConfigError
from gguf_imagegen.settings import Settings

Command = Callable[..., int]


class PlainCommand(TyperCommand):
    """Its help cuts nothing off, however narrow the terminal: typer's boxes shorten flags and variables."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        for kind in ("argument", "option"):
            records = [p.get_help_record(ctx) for p in self.get_params(ctx) if p.param_type_name == kind]
            if records:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(records, col_max=formatter.width // 3)


def with_settings(*names: str) -> Callable[[Command], Callable[..., None]]:
    """Give a command `settings` made of these fields' flags (all when none is named), and an exit code."""
    fields = {
        name: Settings.model_fields[name] for name in ((*names, "config") if names else Settings.model_fields)
    }

    def decorate(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in fields}
            settings = settings_from({name: value for name, value in given.items() if value is not None})
            raise typer.Exit(command(settings=settings, **values))

        own = [
            p
            for name, p in inspect.signature(command, eval_str=True).parameters.items()
            if name != "settings"
        ]
        options = [_parameter(name, field) for name, field in fields.items()]
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        del run.__wrapped__
        return run

    return decorate


def settings_from(given: dict[str, Any]) -> Settings:
    """Settings of flags over environment over file; a wrong value ends the program with words."""
    try:
        return Settings(**given)
    except ConfigError as exc:
        raise typer.BadParameter(f"--config (or {env_name('config')}): {exc}") from exc
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_input=False)[0]
        where = f"{_said(str(fault['loc'][0]), given)}: " if fault["loc"] else ""
        raise typer.BadParameter(where + fault["msg"].removeprefix("Value error, ")) from exc


def _said(field: str, given: Mapping[str, Any]) -> str:
    """Where a field got its value: a flag or a variable, else it must be the file."""
    variables = {name.upper() for name in os.environ}
    file = given.get("config") or os.environ.get(env_name("config"))
    if field in given or env_name(field) in variables or not file:
        return f"--{field.replace('_', '-')} (or {env_name(field)})"
    return f"{Path(file).name}: {field}"


def env_name(field: str) -> str:
    return f"GGUF_IMAGEGEN_{field.upper()}"


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    words = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    default = "" if words in (PydanticUndefined, None, "") else f" [default: {words}]"
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag,
        help=f"{field.description}{default} [env: {env_name(name)}]",
        show_default=False,
        allow_from_autoenv=False,  # Settings reads its variable, which is the same for every command
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_flag_type(field.annotation) | None, option],
    )


def _flag_type(annotation: Any) -> type:
    """What the shell gives; tuples are comma-separated text, choices are checked by Settings."""
    if get_origin(annotation) is UnionType:
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    if get_origin(annotation) in (Literal, tuple):
        return str
    return annotation if annotation in (int, float, bool, Path) else str
