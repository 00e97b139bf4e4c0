from pathlib import Path

import pytest

from deltaserve.errors import FormatError
from services.compressor.pipeline import rows
from services.compressor.pipeline.rows import Chat, Labelled, Text, read_labelled, read_rows


def test_all_kinds_of_rows(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "t"}\n\n{"prompt": "p", "targets": ["a", "b"]}\n{"prompt": "p", "completion": "c"}\n'
        '{"messages": [{"role": "user", "content": "hi"}]}'
    )
    assert read_rows(path) == [
        Text("t"), Labelled("p", ("a", "b")), Labelled("p", ("c",)), Chat([{"role": "user", "content": "hi"}]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("\xff", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[]", "is a JSON list"),
        ("{}", "expected text, prompt with targets, or messages"),
        ('{"text": 1}', "text is a JSON int"),
        ('{"prompt": "p"}', "needs targets"),
        ('{"prompt": "p", "targets": []}', "needs targets"),
        ('{"prompt": "p", "targets": [1]}', "needs targets"),
        ('{"messages": ["hi"]}', "messages is not a list of objects"),
        ("", "has no rows"),
    ],
)
def test_malformed(tmp_path: Path, line: str, message: str):
    path = tmp_path / "a.jsonl"
    path.write_text(line, encoding="latin-1")
    with pytest.raises(FormatError, match=message):
        read_rows(path)


def test_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "aaaaaaaaaaaaaaaaaa"}\n')
    with pytest.raises(FormatError, match="line 2 has more than 20 bytes"):
        read_rows(path)


def test_labelled_rows_accept_a_leading_blank_and_refuse_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "targets": [" a", "a ", "b"]}\n')
    assert read_labelled(path) == [Labelled("p", ("a", " a", "b", " b"))]
    path.write_text('{"text": "p"}\n')
    with pytest.raises(FormatError, match="row 1 has no prompt and targets"):
        read_labelled(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "\\ud800"}',
        b'{"messages": [{"role": "\\udfff"}]}',
        b'{"text": "", "x": [' + b"[]," * 300_000 + b"0]}",
    ],
)
def test_half_characters_and_lines_of_too_many_values_are_refused(tmp_path: Path, line: bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    with pytest.raises(FormatError, match="line 1 is not JSON"):
        read_rows(path)
