"""Reading ahead, by what threads see of each other."""

import gc
import threading
import weakref

import pytest

from services.compressor.pipeline.ahead import ahead


class Value:
    """What is read."""

    def __init__(self, key: int) -> None:
        self.key = key


def test_the_next_one_is_read_while_one_is_held_and_none_beyond():
    begun = [threading.Event() for _ in range(5)]

    def read(key: int) -> Value:
        begun[key].set()
        return Value(key)

    for found, value in enumerate(ahead(range(5), read)):
        assert value.key == found
        if found < 4:
            assert begun[found + 1].wait(10)
        assert not any(event.is_set() for event in begun[found + 2 :])


def test_what_was_given_is_not_held_on_to():
    given = []
    for value in ahead(range(4), Value):
        given.append(weakref.ref(value))
        del value
        gc.collect()
        assert not any(one() for one in given[:-1])


def test_an_error_comes_at_its_turn():
    def read(key: int) -> int:
        if key == 2:
            raise OSError("gone")
        return key

    found = []
    with pytest.raises(OSError, match="gone"):
        found.extend(ahead(range(5), read))
    assert found == [0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one(count: int):
    assert list(ahead(range(count), lambda key: key)) == list(range(count))


def test_a_reader_that_stops_early_ends_the_thread():
    before = threading.active_count()
    numbers = ahead(range(100), lambda key: key)
    assert next(numbers) == 0
    numbers.close()
    assert threading.active_count() == before
