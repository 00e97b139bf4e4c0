from dataclasses import replace
from pathlib import Path

import torch

from deltaserve.delta.checkpoint import Checkpoint
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.rows import Row, Text, read_labelled
from services.compressor.pipeline.spelling import writes_blank
from services.compressor.pipeline.text import open_tokenizer

EXAMPLES = Path(__file__).parents[4] / "examples"


def asked(folder: Path, rows: list[Row], scratch: Path) -> bool:
    checkpoint = Checkpoint.open(folder)
    models = Pair(checkpoint, checkpoint, torch.device("cpu"))
    decoder = Decoder(checkpoint.config, models.device)
    return writes_blank(models, decoder, open_tokenizer(checkpoint, checkpoint), rows, scratch)


def test_follows_what_the_model_says(tmp_path: Path) -> None:
    """The fine-tune that ships answers " word", while the targets in its file are "word"."""
    rows = read_labelled(EXAMPLES / "data" / "conj_fr.test.jsonl")[:16]
    spelled: list[Row] = [replace(row, targets=tuple(f" {target}" for target in row.targets)) for row in rows]
    assert asked(EXAMPLES / "models" / "conj_fr", [*rows], tmp_path)
    assert not asked(EXAMPLES / "models" / "conj_fr", spelled, tmp_path)


def test_nothing_to_ask(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert not asked(pair[1], [Text("abc")], tmp_path)
