"""Calibration sequences and labelled rows of one fine-tune, spelled as the pipeline spells them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoTokenizer

from deltaserve.delta.checkpoint import Checkpoint
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.samples import Samples, calibration_rows, gather
from services.compressor.pipeline.spelling import writes_blank
from services.compressor.pipeline.text import Tokenizer, open_tokenizer

CALIBRATION_ROWS = 256
CALIBRATION_TOKENS = 512


@dataclass(frozen=True)
class LabelledRow:
    """One row of test.jsonl.

    Attributes:
        prompt: tokens of the prompt.
        answer: tokens of the first target, as the fine-tune spells it, with its end.
        targets: every accepted answer as text.
    """

    prompt: list[int]
    answer: list[int]
    targets: list[str]


@dataclass(frozen=True)
class Data:
    """What one fine-tune is calibrated and evaluated with.

    Attributes:
        calibration: token sequences of train.jsonl: prompt, answer, end.
        rows: of test.jsonl.
        ends: ids that end an answer.
        text: tokens → text.
    """

    calibration: list[list[int]]
    rows: list[LabelledRow]
    ends: tuple[int, ...]
    text: Callable[[Sequence[int]], str]


def read_samples(pair: Pair, decoder: Decoder, calibration: Path) -> tuple[Tokenizer, Samples]:
    """Tokenizes the calibration rows as a run of the pipeline does; the tokenizer knows how answers are spelled."""
    tokenizer = open_tokenizer(pair.base, pair.tuned)
    rows = calibration_rows(calibration)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.blank = " " if writes_blank(pair, decoder, tokenizer, rows, Path(scratch)) else ""
    samples = gather(
        tokenizer, rows, None, samples=CALIBRATION_ROWS, tokens=CALIBRATION_TOKENS, context=decoder.context
    )
    return tokenizer, samples


def read_data(base: Path, tuned: Path, *, limit: int | None = None) -> Data:
    """Reads train.jsonl and test.jsonl of a fine-tune's folder.

    Args:
        base: folder of the base.
        tuned: folder of the fine-tune.
        limit: most test rows.
    """
    pair = Pair(Checkpoint.open(base), Checkpoint.open(tuned), torch.device("cpu"))
    tokenizer, samples = read_samples(pair, Decoder(pair.tuned.config, pair.device), tuned / "train.jsonl")
    tests = []
    with (tuned / "test.jsonl").open() as lines:
        for row in map(json.loads, islice(lines, limit)):
            prompt, answer = tokenizer.labelled(row["prompt"], tokenizer.blank + row["targets"][0])
            tests.append(LabelledRow(prompt, answer, [target.strip() for target in row["targets"]]))
    return Data(samples.calibration, tests, samples.ends, AutoTokenizer.from_pretrained(tuned).decode)
