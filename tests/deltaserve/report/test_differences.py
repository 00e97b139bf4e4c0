import random
import re

from deltaserve.report.differences import mark

WORDS = ["alpha", "beta", "gamma", "delta", "<b>"]


def test_only_what_differs_is_marked():
    assert mark("the red fox", "the red fox") == "the red fox"
    assert mark("the blue fox", "the red fox") == "the <mark>blue</mark> fox"
    assert mark("x <b>", "x y") == "x <mark>&lt;b&gt;</mark>"


def test_missing_words_leave_a_caret():
    marked = mark("the fox", "the red fox")
    assert re.sub(r"<mark [^>]*>‸</mark>", "", marked) == "the fox"
    assert "missing here: red" in marked


def test_the_text_stays_the_same_under_its_marks():
    for _ in range(50):
        ours, theirs = (" ".join(random.choices(WORDS, k=random.randrange(9))) for _ in range(2))
        marked = re.sub(r"<mark [^>]*>‸</mark>|</?mark>", "", mark(ours, theirs))
        assert marked.replace("&lt;", "<").replace("&gt;", ">") == ours


def test_long_texts_are_not_compared_word_by_word():
    assert mark("a " * 30_000, "b").startswith("<mark>")
