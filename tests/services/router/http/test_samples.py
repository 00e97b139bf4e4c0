"""Lines of the live page."""

import random

from services.router.http.samples import MOST_LINES, SAMPLES, Samples


def test_lines_keep_the_last_values_at_equal_distances() -> None:
    samples, values = Samples(), [random.uniform(0.1, 9) for _ in range(SAMPLES + 20)]
    for value in values:
        samples.add({"m": value})
    assert samples.line("m") == [round(value, 4) for value in values[-SAMPLES:]]
    samples.add({"other": 1.0})
    assert samples.line("m")[-1] == 0.0
    assert samples.line("nobody") == []


def test_a_line_that_is_zero_throughout_is_forgotten() -> None:
    samples = Samples()
    samples.add({"m": 1.0})
    for _ in range(SAMPLES):
        samples.add({})
    assert samples.line("m") == []


def test_the_busiest_are_drawn() -> None:
    samples = Samples()
    samples.add({f"m{n}": float(n + 1) for n in range(MOST_LINES + 10)})
    assert samples.line("m9") == []
    assert samples.line("m10") == [11.0]
