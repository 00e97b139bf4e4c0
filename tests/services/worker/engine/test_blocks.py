import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaserve.errors import InternalError
from services.worker.engine.blocks import NULL_BLOCK, BlockAllocator


def test_blocks_for_rounds_up():
    allocator = BlockAllocator(4, 16)
    assert [allocator.blocks_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert allocator.capacity == 48


def test_allocating_too_much_and_releasing_twice_are_refused():
    allocator = BlockAllocator(4, 16)
    with pytest.raises(InternalError, match="asked for 4"):
        allocator.allocate(4)
    blocks = allocator.allocate(2)
    allocator.release(blocks)
    with pytest.raises(InternalError, match="twice"):
        allocator.release(blocks)


@given(st.lists(st.integers(-5, 5), max_size=60))
def test_no_block_is_lost_or_owned_twice(actions):
    allocator = BlockAllocator(12, 4)
    owned: list[list[int]] = []
    for action in actions:
        if action > 0 and action <= allocator.free:
            owned.append(allocator.allocate(action))
        elif action <= 0 and owned:
            allocator.release(owned.pop(action % len(owned)))
        held = [block for blocks in owned for block in blocks]
        assert NULL_BLOCK not in held
        assert len(set(held)) == len(held)
        assert allocator.free + len(held) == allocator.count - 1
