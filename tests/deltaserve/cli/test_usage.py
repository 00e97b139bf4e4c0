"""`deltaserve usage` and `deltaserve key`."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from click.testing import CliRunner

from deltaserve.cli.usage import key, usage
from services.router.admission.keys import parse


def test_a_new_key_is_known_by_the_entry_printed_with_it() -> None:
    said = CliRunner().invoke(key, ['team "a"'])
    assert said.exit_code == 0
    text, _, entry = said.output.partition("\n")
    assert text not in entry
    assert tomllib.loads(entry)["keys"][0]["name"] == 'team "a"'
    assert parse(entry.encode(), "k.toml").caller(f"Bearer {text}").name == 'team "a"'
    assert CliRunner().invoke(key, ["b"]).output.partition("\n")[0] != text


def test_usage_shows_keys_models_and_what_is_left(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASERVE_API_KEY", "secret")
    monkeypatch.setenv("COLUMNS", "200")
    said = CliRunner().invoke(usage, ["--server", peer.address])
    assert said.exit_code == 0
    line = next(line for line in said.output.splitlines() if "Bearer secret" in line)
    assert "-12 tokens (+500/s)" in line
    assert "45,000" in line
    assert "french" in said.output
    assert said.output.endswith("1 of at most 1024 requests wait\n")
    as_json = CliRunner().invoke(usage, ["--server", peer.address, "--json"])
    assert '"refused": "3"' in as_json.output
