"""The keys file: who may call, with which share and which limits. Pure but for `read`.

TOML or JSON, by the file's suffix; docs/admission.md shows one. Keys are kept as the SHA-256 of their text: they are
random, so no slower hash is needed, and whoever reads the file cannot call with what is in it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec

from deltaserve.errors import FormatError, PermissionDeniedError, UnauthenticatedError

_BEARER = "bearer "

Positive = Annotated[float, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key or a model may take; None: as much as there is.

    Attributes:
        requests_per_second: mean rate of requests.
        tokens_per_second: mean rate of tokens, of prompts and answers.
        burst_seconds: seconds of both rates that may be used at once after a pause.
        max_queued: most requests that wait in the router.
    """

    requests_per_second: Positive | None = None
    tokens_per_second: Positive | None = None
    burst_seconds: Positive = 10.0
    max_queued: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Party(Limits, frozen=True, forbid_unknown_fields=True):
    """A caller in the file.

    Attributes:
        weight: its share of workers that others want too, relative to theirs.
        max_priority: higher priorities of its requests are lowered to this; None: any goes.
        admin: whether it may call AdminService and ModelService.
    """

    weight: Positive = 1.0
    max_priority: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] | None = 0
    admin: bool = False


class NamedKey(Party, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key in the file: its name in logs and listings, and the SHA-256 of its text in hexadecimal."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]


class KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file.

    Attributes:
        keys: whom a key is asked from.
        anonymous: limits of callers without a key; None: they are refused, if there are keys.
        models: limits of models, over all callers.
    """

    keys: tuple[NamedKey, ...] = ()
    anonymous: Party | None = None
    models: dict[str, Limits] = {}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: of the key; empty for callers without one.
        party: share and limits.
    """

    name: str
    party: Party

    def priority(self, asked: int) -> int:
        """Returns the priority that a request gets."""
        return asked if self.party.max_priority is None else min(asked, self.party.max_priority)


ANONYMOUS = Caller("", Party(max_priority=None, admin=True))


@dataclass(frozen=True, slots=True)
class KeyBook:
    """Callers by key; as it is, everybody is anonymous and may do everything.

    Attributes:
        callers: by SHA-256 of the key, lower case.
        anonymous: who comes without a key; None: nobody may.
        models: limits by model.
    """

    callers: Mapping[str, Caller] = field(default_factory=lambda: MappingProxyType({}))
    anonymous: Caller | None = ANONYMOUS
    models: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))

    def caller(self, authorization: str | None) -> Caller:
        """Returns who sent the `authorization` metadata or header.

        Raises UnauthenticatedError when there are keys and it holds none of them. Without keys it is not looked at,
        since many clients cannot but send one.
        """
        if not self.callers and self.anonymous is not None:
            return self.anonymous
        if authorization is None:
            if self.anonymous is not None:
                return self.anonymous
            raise UnauthenticatedError("an API key is needed; send `authorization: Bearer <key>` with the request")
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise UnauthenticatedError("authorization is not of the form `Bearer <key>`; send the API key in this form")
        caller = self.callers.get(digest(authorization[len(_BEARER) :].strip()))
        if caller is None:
            raise UnauthenticatedError("the API key is not known; check it, or ask who runs the router for one")
        return caller

    def admin(self, authorization: str | None) -> Caller:
        """Returns the caller if it may run the system; raises UnauthenticatedError or PermissionDeniedError."""
        caller = self.caller(authorization)
        if not caller.party.admin:
            raise PermissionDeniedError(
                f"{f'the key {caller.name}' if caller.name else 'a caller without a key'} may not use AdminService and "
                "ModelService; use a key with `admin = true` in the keys file"
            )
        return caller


def digest(key: str) -> str:
    """Returns what the file holds of a key: SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(data: bytes, name: str) -> KeyBook:
    """Returns what a keys file says.

    Args:
        data: its contents.
        name: for errors, and to tell TOML (`.toml`) from JSON (`.json`).

    Raises:
        FormatError: it is malformed, or two keys have the same name or text.
    """
    try:
        if name.endswith(".json"):
            file = msgspec.json.decode(data, type=KeysFile)
        elif name.endswith(".toml"):
            file = msgspec.convert(tomllib.loads(data.decode()), KeysFile)
        else:
            raise FormatError(f"keys file {name}: expected a name that ends in .toml or .json")
    except (ValueError, msgspec.MsgspecError) as error:
        raise FormatError(f"keys file {name}: {error}; see docs/admission.md") from error
    callers = {key.sha256.lower(): Caller(key.name, key) for key in file.keys}
    if len(callers) < len(file.keys) or len({key.name for key in file.keys}) < len(file.keys):
        raise FormatError(f"keys file {name}: two keys have the same name or sha256; each must differ")
    anonymous = None if file.anonymous is None else Caller("", file.anonymous)
    if not file.keys and anonymous is None:
        anonymous = ANONYMOUS
    return KeyBook(MappingProxyType(callers), anonymous, MappingProxyType(file.models))


def read(path: Path) -> KeyBook:
    """Reads a keys file; raises FormatError, also when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"keys file {path} cannot be read: {error.strerror}") from error
    return parse(data, str(path))
