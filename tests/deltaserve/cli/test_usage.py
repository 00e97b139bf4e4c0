"""`deltaserve usage` and `deltaserve key`."""

from __future__ import annotations

import tomllib

from click.testing import CliRunner

from deltaserve.cli.usage import key
from services.router.admission.keys import parse


def test_a_new_key_is_known_by_the_entry_printed_with_it() -> None:
    said = CliRunner().invoke(key, ['team "a"'])
    assert said.exit_code == 0
    text, _, entry = said.output.partition("\n")
    assert text not in entry
    assert tomllib.loads(entry)["keys"][0]["name"] == 'team "a"'
    assert parse(entry.encode(), "k.toml").caller(f"Bearer {text}").name == 'team "a"'
    assert CliRunner().invoke(key, ["b"]).output.partition("\n")[0] != text
