"""Settings of a service: one frozen dataclass, filled from flags and environment variables, built once in `__main__`.

A field `grace_seconds` of service `router` is set by `--grace-seconds` or `DELTASERVE_ROUTER_GRACE_SECONDS`; the flag
wins. Unknown flags and unknown variables with the service's prefix are errors: a misspelt setting must not be silently
ignored.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def setting(default: Any = dataclasses.MISSING, help: str = "") -> Any:  # noqa: A002 - argparse's own word
    """Declares a field of a settings dataclass with its default (none: required) and help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def load(cls: type[T], service: str, argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> T:
    """Builds settings of dataclass `cls` for `service`; exits with a usage message when they are bad.

    Args:
        cls: a frozen dataclass whose fields are str, int, float, bool, Path, tuple[str, ...] or one of these | None.
        service: name in variables' prefix and usage.
        argv: flags; the process's own by default.
        environ: variables; the process's own by default.
    """
    environ = os.environ if environ is None else environ
    prefix = f"DELTASERVE_{service.upper().replace('-', '_')}_"
    hints = typing.get_type_hints(cls)
    parser = argparse.ArgumentParser(prog=service, allow_abbrev=False)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, field in fields.items():
        default = "required" if field.default is dataclasses.MISSING else f"default: {field.default}"
        text = f"{field.metadata.get('help', '')} ({default})".replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=text, metavar="VALUE")
    flags = vars(parser.parse_args(argv))
    variables = {name: environ[prefix + name.upper()] for name in fields if prefix + name.upper() in environ}
    unknown = [v for v in environ if v.startswith(prefix) and v[len(prefix) :].lower() not in fields]
    if unknown:
        known = ", ".join(prefix + name.upper() for name in fields)
        parser.error(f"unknown variables {', '.join(sorted(unknown))}; known are {known}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        given = flags[name] if flags[name] is not None else variables.get(name)
        if given is not None:
            values[name] = _convert(parser, name, given, hints[name])
        elif field.default is dataclasses.MISSING:
            parser.error(f"--{name.replace('_', '-')} (or {prefix}{name.upper()}) is required")
    try:
        return cls(**values)
    except ValueError as error:
        parser.error(str(error))


def _convert(parser: argparse.ArgumentParser, name: str, text: str, hint: Any) -> Any:
    kind = hint
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        if text == "":
            return None
        kind = next(a for a in typing.get_args(hint) if a is not type(None))
    try:
        if kind is bool:
            return _boolean(text)
        if typing.get_origin(kind) is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind is Path:
            return Path(text).expanduser()
        return kind(text)
    except ValueError:
        parser.error(f"--{name.replace('_', '-')} is {text!r}; expected {getattr(kind, '__name__', kind)}")


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in {"true", "1", "yes", "on"}:
        return True
    if lowered in {"false", "0", "no", "off"}:
        return False
    raise ValueError(text)
