"""Profiles of tiny fine-tunes of several kinds: full, merged LoRA, few values changed, nothing changed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD, classify
from services.compressor.pipeline.allocation import Candidate, stored, under_budget
from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.choices import EXACT, Choice, Chooser
from services.compressor.pipeline.coder import Coder
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.profile import Profile, Profiler
from services.compressor.pipeline.progress import Progress
from tests.services.compressor.pipeline.conftest import VOCABULARY, make_model, make_pair, save

CPU = torch.device("cpu")
WIDE = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "tie_word_embeddings": False}
UP = "model.layers.1.mlp.up_proj.weight"
HEADER = 150  # bytes that a plane's entry in the payload's header may take beside its name


class Profiled:
    """A pair with its profile."""

    def __init__(self, pair: tuple[Path, Path], work: Path, asked: Chooser, pinned: tuple[Any, ...] = ()) -> None:
        work.mkdir(exist_ok=True)
        self.pair = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), CPU)
        decoder = Decoder(self.pair.tuned.config, CPU)
        self.profiler = Profiler(self.pair, decoder, Memory(1 << 24), work, asked, pinned)
        assert self.profiler.load() is None
        assert self.profiler.priors() == {}
        random = torch.Generator().manual_seed(5)
        batches = make_batches(torch.randint(8, VOCABULARY, (8, 24), generator=random).tolist())
        measured = [batch.valid.clone() for batch in batches]
        for places in measured:
            places[:, -1] = False
        with torch.no_grad():
            self.profile = self.profiler.make(batches, measured, Progress(io.StringIO()))

    @property
    def table(self) -> dict[str, list[Candidate]]:
        return self.profile.table

    def one(self, name: str, choice: Choice) -> Candidate:
        (found,) = [candidate for candidate in self.table[name] if candidate.choice == choice]
        return found

    def linears(self) -> list[str]:
        return [name for name in self.table if classify(name, (1, 1)) == "linear"]


def profiled(pair: tuple[Path, Path], work: Path, linear: str = "int4", pinned: tuple[Any, ...] = ()) -> Profiled:
    return Profiled(pair, work / "profile", Chooser(linear, "int4", 16), pinned)


def changed_pair(folder: Path, change: Callable[[torch.Tensor], torch.Tensor], **config: Any) -> tuple[Path, Path]:
    """A base, and a fine-tune in which a function has changed every linear."""
    model = make_model(**{**WIDE, **config})
    base = save(model, folder / "base")
    model = type(model).from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(11)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            if "proj.weight" in name:
                tensor.copy_(change(tensor))
    return base, save(model, folder / "tuned")


@pytest.mark.parametrize("tied", [True, False])
def test_every_coded_tensor_has_candidates_that_are_as_large_as_what_they_store(tmp_path: Path, tied: bool):
    found = profiled(make_pair(tmp_path, tie_word_embeddings=tied), tmp_path, linear="sparse24_int4")
    assert set(found.table) == set(found.pair.coded())
    assert (LM_HEAD in found.table) != tied
    for name in (EMBEDDING, "model.layers.0.self_attn.k_proj.weight", UP):
        exact = found.one(name, Choice(EXACT))
        assert exact.cost == 0.0
        base, tuned = found.pair.base_tensor(name), found.pair.tuned_tensor(name)
        for candidate in found.table[name]:
            packed = Coder(found.pair, {name: candidate.choice}).code(name, base, tuned).packed
            over = candidate.bytes - packed.entry.bytes
            assert 0 < over <= len(packed.planes) * (HEADER + len(name))
            assert candidate.cost >= 0.0
    asked = {c.choice.codec for c in found.table[UP]} & {"sparse24_int4"}
    assert asked
    assert "sparse24_int4" not in {c.choice.codec for c in found.table[EMBEDDING]}


def test_more_bits_cost_less(tmp_path: Path):
    found = profiled(make_pair(tmp_path), tmp_path)
    for name in found.table:
        costs = [
            found.one(name, Choice(codec, {"group_size": 16})).cost for codec in ("ternary", "int2", "int3", "int4")
        ]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] > 0.0


def test_noise_is_not_of_low_rank(tmp_path: Path):
    found = profiled(make_pair(tmp_path), tmp_path)
    assert not any(c.choice.codec == "lowrank" for candidates in found.table.values() for c in candidates)


def test_a_merged_adapter_is_found_and_kept_as_factors(tmp_path: Path):
    def adapt(weight: torch.Tensor) -> torch.Tensor:
        return weight + 0.03 * torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])

    found = profiled(changed_pair(tmp_path, adapt), tmp_path)
    shapes = [found.pair.tuned.tensors[name].shape for name in found.linears()]
    budget = 2 * sum(torch.Size(shape).numel() for shape in shapes) // 8
    chosen = under_budget(found.table, budget)
    assert stored(chosen) <= budget
    for name in found.linears():
        factors = found.one(name, Choice("lowrank", {"rank": 2}))
        assert factors.cost < 0.02 * found.one(name, Choice("sign1")).cost
        assert chosen[name].choice.codec.startswith("lowrank")  # alone or, where bytes are left, with a rest
    assert all(chosen[name].choice == Choice(EXACT) for name in (EMBEDDING, LM_HEAD))  # as in the base
    factors_alone = [found.one(name, Choice("lowrank", {"rank": 2})) for name in found.linears()]
    scarce = under_budget(found.table, sum(candidate.bytes for candidate in factors_alone))
    assert [scarce[name] for name in found.linears()] == factors_alone


def test_what_is_as_in_the_base_takes_nothing(tmp_path: Path):
    found = profiled(changed_pair(tmp_path, lambda weight: weight), tmp_path)
    for name in found.table:
        assert found.one(name, Choice(EXACT)) == Candidate(Choice(EXACT), 0, 0.0)
    assert stored(under_budget(found.table, 0)) == 0


def test_few_changed_values_are_smaller_than_all(tmp_path: Path):
    def some(weight: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand_like(weight) < 0.05, weight + 0.05, weight)

    found = profiled(changed_pair(tmp_path, some), tmp_path)
    for name in found.linears():
        shape = found.pair.tuned.tensors[name].shape
        exact = found.one(name, Choice(EXACT))
        packed = found.pair.whole(name)
        assert packed.entry.codec == "sparse_exact"
        assert packed.entry.bytes < exact.bytes <= packed.entry.bytes + len(packed.planes) * (HEADER + len(name))
        assert exact.bytes < 0.35 * Choice("dense").stored_bytes(shape, "BF16", name)


def test_pinned_classes_have_no_choice(tmp_path: Path):
    found = profiled(make_pair(tmp_path), tmp_path, pinned=("embedding", "lm_head"))
    assert [c.choice for c in found.table[EMBEDDING]] == [Choice("int4", {"group_size": 16})]
    assert len(found.table[UP]) > 3


def test_a_profile_is_kept_with_what_it_tells_of_embeddings(tmp_path: Path):
    found = profiled(make_pair(tmp_path), tmp_path)
    assert found.profiler.load() == found.profile == Profile(dict(sorted(found.table.items())))
    prior = found.profiler.priors()[EMBEDDING]
    assert prior.power is not None
    assert prior.power.shape == (VOCABULARY,)
    assert float(prior.power.min()) > 0  # tokens that the sample does not show may come
    gram = prior.curvature.gram
    assert gram.shape == (32, 32)
    torch.testing.assert_close(gram, gram.T)
    assert float(torch.linalg.eigvalsh(gram).min()) > 0
    assert float(gram.diagonal().mean()) == pytest.approx(1.0, rel=1e-5)
