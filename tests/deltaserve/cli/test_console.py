"""Numbers as people read them."""

import pytest

from deltaserve.cli.console import bits_text, bytes_text, ratio_text, seconds_text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_696_792, "14.7 MB"), (2e12, "2.00 TB")]
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.34, "340 ms"), (1.25, "1.2 s"), (12, "12 s"), (185, "3 min 05 s"), (7300, "2 h 01 min")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_ratios_of_nothing_are_a_dash() -> None:
    assert (ratio_text(12.5, 1), ratio_text(0, 1), ratio_text(1, 0)) == ("12.5x", "-", "-")
    assert (bits_text(2, 4), bits_text(2, 0)) == ("4.00", "-")
