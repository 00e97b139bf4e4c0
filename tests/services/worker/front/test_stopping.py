"""Stop strings end the text at the same place however it is cut into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.front.stopping import StopMatcher


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[str, str | None]:
    matcher, shown = StopMatcher(stops, include), ""
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + matcher.flush(), None


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stop"),
    [
        ("hello world", ["wor"], "hello ", "wor"),
        ("hello world", ["xyz"], "hello world", None),
        ("hello world", [], "hello world", None),
        ("aab", ["ab"], "a", "ab"),
        ("abcY", ["abcX", "bcY"], "a", "bcY"),
        ("abc", ["abcd", "c"], "ab", "c"),
        ("abc", ["bc", "abc"], "", "abc"),  # of those that complete together, the longest
        ("one\n\ntwo", ["\n\n"], "one", "\n\n"),
        ("ends with st", ["stop"], "ends with st", None),
    ],
)
def test_where_text_ends(text: str, stops: list[str], shown: str, stop: str | None) -> None:
    assert run([text], stops) == (shown, stop)
    assert run(list(text), stops) == (shown, stop)


def test_the_match_may_stay() -> None:
    assert run(["a st", "op b"], ["stop"], include=True) == ("a stop", "stop")


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("text <") == ("text ", None)
    assert matcher.push("b> ") == ("<b> ", None)
    assert matcher.push("</") == ("", None)
    assert matcher.flush() == "</"


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_cuts_do_not_matter(text: str, stops: list[str], data: st.DataObject) -> None:
    pieces, rest = [], text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:length])
        rest = rest[length:]
    assert run(pieces, stops) == run(list(text), stops)
    shown, stop = run(pieces, stops)
    assert not any(s in shown for s in stops)
    assert text.startswith(shown + (stop or ""))
