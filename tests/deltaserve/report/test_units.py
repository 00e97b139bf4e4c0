import math
import random

import pytest

from deltaserve.report.units import NONE, bytes_text, number, percent, points, power_of_ten, times, whole


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (0.00188264, "0.00188"), (0.0009996, "0.00100"), (3.21e-5, "3.21 × 10⁻⁵"), (1423.4, "1,423"),
        (-0.5, "−0.500"), (9.996, "10.0"), (99.96, "100"), (2.5e12, "2.50 × 10¹²"), (None, NONE),
        (math.nan, NONE), (math.inf, NONE),
    ],
)  # fmt: skip
def test_numbers(value: float | None, shown: str):
    assert number(value).replace("\u202f", " ") == shown


def test_a_number_reads_back():
    for _ in range(200):
        value = random.choice((-1, 1)) * 10 ** random.uniform(-4, 8)
        read = float(number(value).replace(",", "").replace("−", "-"))
        assert math.isclose(read, value, rel_tol=0.0051)


def test_shares_and_differences():
    assert [percent(share).replace("\u202f", " ") for share in (0.9933, 0.99999, 1.0, None)] == [
        "99.3 %", "99.9 %", "100.0 %", NONE,
    ]  # fmt: skip
    assert [points(value) for value in (-0.5, 0.52, -0.01, None, math.nan)] == ["−0.5", "+0.5", "0.0", NONE, NONE]


def test_bytes_ratios_and_counts():
    shown = [bytes_text(count).replace("\u202f", " ") for count in (0, 999, 1000, 1_391_232, 999_600, 13.05e9, 4e12)]
    assert shown == ["0 B", "999 B", "1.00 kB", "1.39 MB", "1.00 MB", "13.1 GB", "4.00 TB"]
    assert times(10.558) == "10.6×"
    assert (whole(1, "row"), whole(3859, "token")) == ("1 row", "3,859 tokens")
    assert [power_of_ten(p) for p in (-3, 0, 1, 12)] == ["10⁻³", "1", "10", "10¹²"]
