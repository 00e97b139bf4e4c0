"""What it costs to make outputs follow grammars: preparing a tokenizer, compiling, and a mask for each token.

The tokenizer is byte-level BPE, trained here on the sources of Python's standard library up to the vocabulary asked
for. Masks are taken along a JSON text that each schema accepts, white space included. "sampler" is what
`sampler.sample` takes for a batch of rows with and without masks, at temperature 1, on logits of the vocabulary. All
times are CPU times of one thread, so that a busy machine does not count.

Other libraries are measured too where they are installed (xgrammar; outlines_core lists tokens instead of masks).

    .venv/bin/python -m benchmarks.grammar_masks --vocabulary 128256
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.hardware import describe
from services.worker.engine.grammars import Matcher
from services.worker.engine.sampler import sample
from services.worker.engine.sequence import Sequence, sequence_of
from services.worker.messages import Add, Sampling

RUNS = 5
ROWS = (1, 8, 32)
_TEXT_BYTES = 24 << 20
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "score": {"type": "number"},
    },
    "required": ["name", "tags", "address", "age", "score"],
    "additionalProperties": False,
}
TEXT = (
    '{"name": "Anna Schmidt of Berlin", "tags": ["red", "blue"], "address": {"street": "Unter den Linden 17, second '
    'floor", "zip": "10117"}, "age": 42, "score": 3.25}'
)
CASES = {"schema": SCHEMA, "any object": {"type": "object"}}


def train(size: int) -> Tokenizer:
    """Returns a tokenizer of `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    left = _TEXT_BYTES
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(errors="replace")
        yield text
        left -= len(text)
        if left <= 0:
            return


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns CPU seconds of the process, which does one thing at a time, and the result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def line(name: str, prepare: float, compile_: float, masks: list[float]) -> None:
    """Prints a row."""
    micro = sorted(1e6 * seconds for seconds in masks)
    shown = (statistics.mean(micro), statistics.median(micro), micro[int(len(micro) * 0.95)], micro[-1])
    numbers = " ".join(f"{value:9.0f}" for value in shown)
    print(f"{name:28} {prepare:9.3f} {1e3 * compile_:10.2f} {numbers}", flush=True)


def llguidance(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Measures the library that the engine uses, as it uses it."""
    text, size = tokenizer.to_str(), tokenizer.get_vocab_size()
    prepare, prepared = timed(lambda: LLTokenizer(text, n_vocab=size, eos_token=[0]))
    for name, schema in CASES.items():
        compiling, masks = [], []
        for _ in range(RUNS):
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
            seconds, matcher = timed(lambda g=grammar: Matcher(LLMatcher(prepared, g)))  # type: ignore[misc]
            compiling.append(seconds)
            for token in ids:
                masks.append(timed(matcher.mask)[0])
                assert not matcher.advance(token)
        line(f"llguidance, {name}", prepare, statistics.median(compiling), masks)


def xgrammar(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Measures xgrammar."""
    import xgrammar as xg

    size = tokenizer.get_vocab_size()
    spelt = [tokenizer.id_to_token(token) for token in range(size)]
    prepare, info = timed(lambda: xg.TokenizerInfo(spelt, xg.VocabType.BYTE_LEVEL, vocab_size=size, stop_token_ids=[0]))
    bitmask = xg.allocate_token_bitmask(1, size)
    for name, schema in CASES.items():
        compiling, masks = [], []
        for _ in range(2):
            compiler = xg.GrammarCompiler(info, max_threads=1, cache_enabled=False)
            seconds, compiled = timed(lambda c=compiler, s=schema: c.compile_json_schema(json.dumps(s)))  # type: ignore[misc]
            compiling.append(seconds)
            matcher = xg.GrammarMatcher(compiled)
            for token in ids:
                masks.append(timed(lambda m=matcher: m.fill_next_token_bitmask(bitmask))[0])  # type: ignore[misc]
                assert matcher.accept_token(token)
        line(f"xgrammar, {name}", prepare, statistics.median(compiling), masks)


def outlines_core(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Measures outlines_core, whose grammars are regular: an object of any depth is none, so only the schema."""
    import outlines_core as oc
    from outlines_core.json_schema import build_regex_from_schema

    text, size = tokenizer.to_str(), tokenizer.get_vocab_size()
    prepared = LLTokenizer(text, n_vocab=size, eos_token=[0])
    by_bytes: dict[bytes, list[int]] = {}
    for token in range(1, size):
        by_bytes.setdefault(prepared.decode_bytes([token]), []).append(token)
    prepare, vocabulary = timed(lambda: oc.Vocabulary(0, by_bytes))
    compiling, index = timed(lambda: oc.Index(build_regex_from_schema(json.dumps(SCHEMA)), vocabulary))
    guide, masks = oc.Guide(index), []
    for token in ids:
        masks.append(timed(guide.get_tokens)[0])
        guide.advance(token)
    line("outlines_core, schema", prepare, compiling, masks)


def sampler(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Measures a step's sampling for batches of constrained and of free rows."""
    text, size = tokenizer.to_str(), tokenizer.get_vocab_size()
    prepared = LLTokenizer(text, n_vocab=size, eos_token=[0])
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA))
    print(f"\n{'sampler, rows':28} {'free ms':>9} {'constrained ms':>15} {'us a row more':>14}")
    for rows in ROWS:
        logits = torch.randn(rows, size)
        means = []
        for constrained in (False, True):
            sequences = [
                _sequence(row, Matcher(LLMatcher(prepared, grammar)) if constrained else None) for row in range(rows)
            ]
            seconds = []
            for token in ids:
                seconds.append(timed(lambda s=sequences, x=logits: sample(x.clone(), s))[0])  # type: ignore[misc]
                for sequence in sequences:
                    if sequence.constraint is not None:
                        sequence.constraint.advance(token)
            means.append(statistics.mean(seconds))
        free, bound = means
        print(f"{rows:<28} {1e3 * free:9.2f} {1e3 * bound:15.2f} {1e6 * (bound - free) / rows:14.0f}", flush=True)


def _sequence(number: int, constraint: Matcher | None) -> Sequence:
    add = Add(sequence=number, revision="", prompt=[1], sampling=Sampling(seed=number, max_tokens=1000))
    return sequence_of(add, number, 0.0, constraint)


def main() -> None:
    """Reads the arguments, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_256, help="tokens of the tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, in place of one that is trained here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = arguments.tokenizer
    tokenizer = Tokenizer.from_file(str(given)) if given else train(arguments.vocabulary)
    ids = tokenizer.encode(TEXT).ids
    print(f"# {describe()}; {tokenizer.get_vocab_size()} tokens; a text of {len(ids)} tokens")
    print(f"{'':28} {'prepare s':>9} {'compile ms':>10} {'mask us':>9} {'median':>9} {'p95':>9} {'max':>9}")
    llguidance(tokenizer, ids)
    for library in (xgrammar, outlines_core):
        if importlib.util.find_spec(library.__name__) is None:
            print(f"{library.__name__} is not installed")
        else:
            library(tokenizer, ids)
    sampler(tokenizer, ids)


if __name__ == "__main__":
    main()
