"""Block-hash chains over simulated blocks: what is found is what the same tokens of the same contents made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.sequence import Sequence, sequence_of
from services.worker.messages import Add, Sampling

SIZE = 4


class Cache:
    """A prefix cache over a few blocks, and the contents of its revisions."""

    def __init__(self, blocks: int = 12, *, enabled: bool = True) -> None:
        self.contents: dict[str, str] = {}
        self.blocks = BlockAllocator(blocks, SIZE)
        self.prefixes = PrefixCache(self.blocks, lambda r: self.contents.get(r, f"{r} 1"), enabled=enabled)

    def sequence(self, tokens: list[int], revision: str = "a") -> Sequence:
        sequence = sequence_of(Add(sequence=1, revision=revision, prompt=tokens, sampling=Sampling()), 1, 0.0)
        assert not self.prefixes.is_stale(sequence)
        return sequence

    def begin(self, tokens: list[int], revision: str = "a") -> Sequence:
        """Reuses what there is, and takes blocks for the rest."""
        sequence = self.sequence(tokens, revision)
        self.prefixes.reuse(sequence)
        need = self.blocks.blocks_for(len(tokens)) - len(sequence.blocks)
        sequence.blocks += self.blocks.allocate(need)
        return sequence

    def compute(self, tokens: list[int], revision: str = "a") -> Sequence:
        sequence = self.begin(tokens, revision)
        sequence.computed = len(tokens)
        self.prefixes.publish(sequence)
        return sequence


def test_the_same_beginning_of_the_same_model_shares_full_blocks():
    cache = Cache()
    first = cache.compute([1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = cache.begin([1, 2, 3, 4, 5, 6, 7, 8, 100, 101])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2], "a block that is not full is nobody else's"
    assert second.computed == cache.prefixes.hits == 8


def test_one_token_is_always_left_to_compute():
    cache = Cache()
    cache.compute([1, 2, 3, 4, 5, 6, 7, 8])
    assert cache.begin([1, 2, 3, 4, 5, 6, 7, 8]).computed == 4


def test_other_models_other_beginnings_and_other_contents_share_nothing():
    cache = Cache()
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    cache.blocks.release(cache.compute(tokens).blocks)
    for other, revision in ((tokens, "b"), (tokens, ""), ([0, *tokens[1:]], "a"), ([1, 23, 4, 5, 6, 7, 8, 9, 0], "a")):
        sequence = cache.begin(other, revision)
        assert sequence.computed == 0
        cache.blocks.release(sequence.blocks)
    cache.contents["a"] = "a 2"
    assert cache.begin(tokens).computed == 0


def test_blocks_in_the_middle_are_found_by_their_whole_past_only():
    cache = Cache()
    cache.compute([1] * 8 + [2])
    assert cache.begin([2] * 4 + [1] * 5).computed == 0


def test_a_sequence_whose_contents_changed_while_it_waited_is_stale():
    cache = Cache()
    sequence = cache.compute([1, 2, 3, 4, 5])
    assert not cache.prefixes.is_stale(sequence)
    cache.contents["a"] = "a 2"
    assert cache.prefixes.is_stale(sequence)
    assert not cache.prefixes.is_stale(sequence)
    cache.blocks.release(sequence.blocks)
    sequence.blocks, sequence.computed, sequence.published = [], 0, 0
    cache.prefixes.reuse(sequence)
    assert sequence.computed == 0


def test_what_was_unused_for_longest_is_forgotten_first_and_ends_before_beginnings():
    cache = Cache(blocks=6)
    old, new = cache.compute([1] * 9), cache.compute([2] * 5)
    cache.blocks.release(old.blocks)
    cache.blocks.release(new.blocks)
    assert cache.blocks.free == 5
    taken = cache.blocks.allocate(3)  # two that hold nothing, and the second of the older chain
    assert old.blocks[1] in taken
    sequence = cache.sequence([1] * 9)
    cache.prefixes.reuse(sequence)
    assert sequence.blocks == old.blocks[:1]


def test_blocks_in_use_are_never_taken():
    cache = Cache(blocks=6)
    used = cache.compute([1] * 9)
    assert cache.blocks.free == 2
    assert not set(cache.blocks.allocate(2)) & set(used.blocks)


def test_switched_off_nothing_is_found():
    cache = Cache(enabled=False)
    cache.compute([1] * 9)
    assert cache.begin([1] * 9).computed == cache.prefixes.hits == 0


def test_a_number_that_no_model_has_an_embedding_for_is_a_token_like_others():
    cache = Cache()
    cache.compute([-(1 << 70), 1 << 70, 3, 4, 5])
    assert cache.begin([-(1 << 70), 1 << 70, 3, 4, 6]).computed == 4


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=13), st.sampled_from("ab")), max_size=30))
def test_shared_blocks_hold_what_would_be_computed_and_owners_add_up(prompts):
    cache = Cache(blocks=11)
    past: dict[int, tuple[str, tuple[int, ...]]] = {}  # what a block was filled with, and all before it
    running: list[Sequence] = []
    for tokens, revision in prompts:
        while cache.blocks.blocks_for(len(tokens)) > cache.blocks.free:
            cache.blocks.release(running.pop(0).blocks)
        sequence = cache.begin(tokens, revision)
        for index in range(sequence.computed // SIZE):
            assert past[sequence.blocks[index]] == (revision, tuple(tokens[: (index + 1) * SIZE]))
        for index in range(sequence.computed // SIZE, len(sequence.blocks)):
            past[sequence.blocks[index]] = (revision, tuple(tokens[: (index + 1) * SIZE]))
        sequence.computed = len(tokens)
        cache.prefixes.publish(sequence)
        running.append(sequence)
        held = {block for s in running for block in s.blocks}
        assert len(held) + cache.blocks.free == 10
    for sequence in running:
        cache.blocks.release(sequence.blocks)
    assert cache.blocks.free == 10
