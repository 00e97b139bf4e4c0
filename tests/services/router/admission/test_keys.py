"""The keys file, and who is who by it."""

from __future__ import annotations

import json
import secrets

import pytest

from deltaserve.errors import FormatError, PermissionDeniedError, UnauthenticatedError
from services.router.admission.keys import KeyBook, digest, parse

TOML = """
[[keys]]
name = "team"
sha256 = "{sha}"
weight = 2
max_priority = 5
requests_per_second = 1.5
admin = true

[[keys]]
name = "other"
sha256 = "{other}"

[models."tuned"]
tokens_per_second = 1000
max_queued = 3
"""


def book(extra: str = "") -> tuple[KeyBook, str, str]:
    key, other = secrets.token_urlsafe(), secrets.token_urlsafe()
    return parse((TOML.format(sha=digest(key).upper(), other=digest(other)) + extra).encode(), "k.toml"), key, other


def test_a_key_is_known_by_its_hash() -> None:
    found, key, other = book()
    for scheme in ("Bearer ", "bearer  ", "BEARER "):
        caller = found.caller(scheme + key)
        assert (caller.name, caller.party.weight, caller.party.requests_per_second) == ("team", 2.0, 1.5)
    assert [caller.priority(asked) for asked in (9, 5, -3)] == [5, 5, -3]
    assert found.caller(f"Bearer {other}").priority(9) == 0
    assert found.admin(f"Bearer {key}").name == "team"
    assert found.models["tuned"].max_queued == 3
    with pytest.raises(PermissionDeniedError, match="other"):
        found.admin(f"Bearer {other}")


@pytest.mark.parametrize("authorization", [None, "", "Bearer nope", "Basic abc", "Bearer", "Bearer "])
def test_others_are_refused(authorization: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        book()[0].caller(authorization)


def test_the_hash_is_not_the_key() -> None:
    found, key, _ = book()
    with pytest.raises(UnauthenticatedError):
        found.caller(f"Bearer {digest(key)}")


def test_callers_without_a_key_may_be_let_in_with_limits() -> None:
    found, _, _ = book("[anonymous]\nrequests_per_second = 0.5\n")
    assert found.caller(None).party.requests_per_second == 0.5
    with pytest.raises(UnauthenticatedError):
        found.caller("Bearer nope")
    with pytest.raises(PermissionDeniedError):
        found.admin(None)


def test_without_keys_everybody_is_anonymous() -> None:
    for found in (KeyBook(), parse(b'{"models": {"m": {"requests_per_second": 1}}}', "k.json")):
        assert found.caller("Bearer unused") == found.caller(None) == found.admin("anything")
        assert found.caller(None).priority(7) == 7


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("[[keys]]\nname = 'a'\n", "k.toml"),
        ("[[keys]]\nname = 'a'\nsha256 = 'abc'\n", "k.toml"),
        ("[models.m]\ntokens_per_second = 0\n", "k.toml"),
        ("[models.m]\ntoken_per_second = 1\n", "k.toml"),
        ("[[keys]\n", "k.toml"),
        ("{", "k.json"),
        ("{}", "k.yaml"),
        (json.dumps({"keys": [{"name": n, "sha256": "0" * 64} for n in "ab"]}), "k.json"),
        (json.dumps({"keys": [{"name": "a", "sha256": d * 64} for d in "01"]}), "k.json"),
    ],
)
def test_malformed_files_are_refused_by_name(data: str, name: str) -> None:
    with pytest.raises(FormatError, match=name):
        parse(data.encode(), name)
