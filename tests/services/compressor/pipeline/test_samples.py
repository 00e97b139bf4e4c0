from pathlib import Path

import pytest

from deltaserve.errors import FormatError
from services.compressor.pipeline.rows import Chat, Labelled, Row, Text
from services.compressor.pipeline.samples import calibration_rows, gather
from services.compressor.pipeline.text import Tokenizer
from tests.services.compressor.pipeline.conftest import lines, save_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    save_tokenizer(tmp_path)
    return Tokenizer(tmp_path, 264, ())


def test_calibration_and_held_out_are_disjoint_and_within_limits(tokenizer: Tokenizer):
    rows = [Text(chr(97 + i % 26) * (2 + i)) for i in range(60)]
    samples = gather(tokenizer, rows, None, samples=20, tokens=16, context=128)
    assert len(samples.calibration) == 20
    assert len(samples.held_out) == 17  # of 84 pieces every fifth
    assert all(2 <= len(sequence) <= 16 for sequence in samples.calibration)
    assert all(2 <= len(one.tokens) == len(one.asked) <= 16 for one in samples.held_out)
    assert all(one.counted == "whole" and all(one.asked) for one in samples.held_out)
    assert samples.rows == samples.skipped == 0


def test_built_in_set_is_diverse_and_always_in_the_same_order(tokenizer: Tokenizer):
    rows = calibration_rows(None)
    assert len(rows) >= 64
    assert rows == calibration_rows(None)
    samples = gather(tokenizer, rows, None, samples=256, tokens=512, context=4096)
    assert len(samples.calibration) >= 48
    assert len(samples.held_out) >= 12


def test_too_little_to_calibrate_with(tokenizer: Tokenizer):
    with pytest.raises(FormatError, match="gives 1 sequences"):
        gather(tokenizer, [Text("abc"), Text("a")], None, samples=20, tokens=16, context=128)


def test_labelled_rows_that_do_not_fit_are_skipped_and_counted(tokenizer: Tokenizer, tmp_path: Path):
    path = lines(
        tmp_path / "e.jsonl",
        [
            {"prompt": "abc", "targets": ["d", "e"]},
            {"prompt": "a" * 30, "targets": ["b"]},
            {"prompt": "x", "targets": ["y"]},
        ],
    )
    samples = gather(tokenizer, [Text("abc"), Text("abd")], path, samples=20, tokens=16, context=20)
    assert (samples.rows, samples.skipped) == (2, 1)
    assert [answer.row for answer in samples.answers] == [0, 0, 0, 0, 1, 1]
    assert all(answer.tokens[-1] == 0 for answer in samples.answers)


def test_held_out_rows_know_what_is_asked_of_the_fine_tune(tokenizer: Tokenizer):
    rows: list[Row] = [Text("abcd")] * 15
    rows[0] = Labelled("<s1>abc", ("de",))
    rows[5] = Chat([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}])
    samples = gather(tokenizer, rows, None, samples=20, tokens=16, context=128)
    labelled, chat, text = samples.held_out
    assert (labelled.counted, chat.counted, text.counted) == ("answers", "turns", "whole")
    assert labelled.asked == [False] * 4 + [True] * 3
    assert chat.asked == [False] * 4 + [True] * 4
    assert len(samples.calibration) == 12  # with all of their tokens


def test_an_answer_beyond_the_cut(tokenizer: Tokenizer):
    """Pieces of a long row are asked what the row asks there."""
    rows: list[Row] = [Labelled("a" * 20, ("b",)) for _ in range(5)]
    pieces = gather(tokenizer, rows, None, samples=20, tokens=16, context=128).held_out
    assert [one.asked for one in pieces] == [[False] * 16, [False] * 4 + [True] * 2]
    assert {one.counted for one in pieces} == {"answers"}


def test_everything_counts_when_no_piece_is_asked_anything(tokenizer: Tokenizer):
    pieces = gather(tokenizer, [Labelled("a" * 70, ("b",))], None, samples=20, tokens=16, context=128).held_out
    assert [(one.asked, one.counted) for one in pieces] == [([True] * 16, "whole")]
