"""Tiny random models of every architecture, fine-tunes packed by every codec, and the merged models as oracle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.packed import fit_rows
from deltaserve.delta.reader import DeltaReader
from deltaserve.delta.writer import DeltaWriter, Identity
from services.worker.engine.process import build_engine
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Add, DeltaChanged, FromEngine, Load, Logprobs, Output, Sampling, Step

VOCAB = 96
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def random_model(folder: Path, model_type: str, **options: Any) -> Path:
    """Saves a model with random weights, norms and biases included, as float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SHAPE, **options}))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        assert torch.isfinite(parameter).all(), name
    model.float().save_pretrained(folder)
    return folder


def pack_fine_tune(folder: Path, base_folder: Path, codec: str, *, vocab: int = VOCAB, seed: int = 1) -> Path:
    """Packs a random full fine-tune of a base: matrices by `codec`, everything else whole."""
    base = Checkpoint.open(base_folder)
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name in base.tensors:
        old = fit_rows(base.read(name), vocab) if name in VOCABULARY else base.read(name)
        tuned[name] = old + 0.06 * torch.randn(old.shape, generator=generator)
    return pack_tensors(folder, base, tuned, codec, vocab=vocab)


def pack_tensors(
    folder: Path, base: Checkpoint, tuned: Mapping[str, torch.Tensor], codec: str, *, vocab: int | None = None
) -> Path:
    """Packs a fine-tune given as float32 tensors, without calibration."""
    writer = DeltaWriter(folder / "parts")
    for name, values in tuned.items():
        if values.dim() == 1 or codec == "dense":
            packed = code_dense(name, values)
        else:
            params = {"group_size": 32} if codec in ("ternary", "int2", "int3", "int4") else {}
            params |= {"rank": 4} if codec.startswith("lowrank") else {}
            params |= {"rows": 5} if codec.startswith("tiered") else {}
            delta = values - fit_rows(base.read(name).float(), len(values))
            packed = code_delta(name, delta, torch.float32, codec, base=name, params=params)
        writer.add_part(name, [packed])
    identity = Identity(
        model=folder.name,
        revision="1",
        created="2026-01-01T00:00:00Z",
        base=BaseRef(fingerprint=fingerprint(base), architecture=base.architecture),
        config={**base.config, "vocab_size": vocab or base.config["vocab_size"]},
    )
    writer.finish(folder / "out", identity, files={}, base_files={}, compression={})
    return folder / "out"


def merged_model(base_folder: Path, delta_folder: Path | None) -> PreTrainedModel:
    """Returns transformers' own model with the merged weights, float32."""
    config = AutoConfig.from_pretrained(base_folder)
    base = Checkpoint.open(base_folder)
    if delta_folder is None:
        return AutoModelForCausalLM.from_pretrained(
            base_folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    reader = DeltaReader.open(delta_folder)
    config.vocab_size = reader.manifest.config["vocab_size"]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    missing, unexpected = model.load_state_dict(merged_state_dict(base, reader), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model.eval()


class Rig:
    """An engine in this process, driven by hand; its loader thread is real."""

    def __init__(self, base_folder: Path, **settings: Any) -> None:
        self.sent: list[FromEngine] = []
        self.now = 0.0
        defaults = {"kv_bytes": 8 << 20, "block_size": 4, "decoded_bytes": 0, "max_step_tokens": 64}
        options = EngineSettings(base_folder=str(base_folder), **{**defaults, **settings})
        self.engine, self.ready = build_engine(options, self.sent.append, lambda: None)
        self.outputs: dict[int, list[Output]] = {}

    def load(self, revision: str, folder: Path, state: str = "resident", **options: Any) -> DeltaChanged:
        """Loads a delta and waits until it is in `state`, or has failed."""
        self.engine.handle(Load(revision, str(folder), **options), self.now)
        return self.wait_for(revision, state, "failed")

    def wait_for(self, revision: str, *states: str) -> DeltaChanged:
        for _ in range(20_000):
            self.step()
            for message in self.sent:
                if isinstance(message, DeltaChanged) and message.revision == revision and message.state in states:
                    self.sent.remove(message)
                    return message
        pytest.fail(f"{revision} never became {states}: {self.sent}")

    def add(self, sequence: int, prompt: Sequence[int], revision: str = "", **options: Any) -> None:
        envelope = {k: options.pop(k) for k in ("priority", "deadline", "prefill_deadline", "resume") if k in options}
        sampling = Sampling(**{"temperature": 0.0, "max_tokens": 8, **options})
        add = Add(sequence=sequence, revision=revision, prompt=list(prompt), sampling=sampling, **envelope)
        self.engine.handle(add, self.now)

    def step(self) -> bool:
        self.now += 0.001
        begin = len(self.sent)
        computed = self.engine.step(self.now)
        for message in self.sent[begin:]:
            if isinstance(message, Step):
                for output in message.outputs:
                    self.outputs.setdefault(output.sequence, []).append(output)
        if not computed:
            time.sleep(0.0005)  # for the loader
        return computed

    def run(self) -> None:
        """Steps until every sequence is finished."""
        for _ in range(20_000):
            if self.engine.idle:
                return
            self.step()
        pytest.fail("the engine never gets done")

    def tokens(self, sequence: int) -> list[int]:
        return [token for output in self.outputs[sequence] for token in output.tokens]

    def logprobs(self, sequence: int) -> list[Logprobs]:
        return [entry for output in self.outputs[sequence] for entry in output.logprobs]

    def finish(self, sequence: int) -> str:
        return self.outputs[sequence][-1].finish


def logits_of(entries: Sequence[Logprobs], vocab: int) -> torch.Tensor:
    """Rebuilds whole rows of raw logits [T, vocab] from outputs with top_logprobs = vocab and raw_logits."""
    rows = torch.full((len(entries), vocab), float("nan"))
    for row, entry in zip(rows, entries, strict=True):
        row[entry.top_ids] = torch.tensor(entry.top_values)
    return rows


@torch.inference_mode()
def assert_equals_oracle(rig: Rig, sequence: int, prompt: Sequence[int], oracle: PreTrainedModel) -> None:
    """Checks tokens and logits of a greedy sequence with all logits against one forward pass over the whole."""
    tokens = rig.tokens(sequence)
    vocab = oracle.config.vocab_size
    expected = oracle(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    found = logits_of(rig.logprobs(sequence), vocab)
    assert (found - expected).abs().max() <= 1e-3
    assert tokens == expected.argmax(1).tolist()


ALL_LOGITS = {"top_logprobs": 1 << 20, "raw_logits": True}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Packs fine-tunes, each kind once a session."""
    made: dict[tuple[Any, ...], Path] = {}

    def packed(base: Path, codec: str, **options: Any) -> Path:
        key = (base, codec, *sorted(options.items()))
        if key not in made:
            made[key] = pack_fine_tune(tmp_path_factory.mktemp(codec), base, codec, **options)
        return made[key]

    return packed


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    return Rig
