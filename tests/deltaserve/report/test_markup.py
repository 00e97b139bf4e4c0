from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from deltaserve.report.markup import join, tag


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


printable = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)


@given(printable, printable)
def test_any_text_stays_text(child: str, value: str):
    read = Reader(tag("p", child, title=value))
    assert read.tags == ["p"]
    assert read.text == child
    assert read.attributes == {"title": value}


def test_what_no_page_may_hold_is_replaced():
    assert tag("p", "a\x00b\ud800c\x1b[31m\td\r\ne") == "<p>a\ufffdb\ufffdc\ufffd[31m\td\ne</p>"
    tag("p", "\ud800").encode()


def test_attributes_and_void_elements():
    made = tag("rect", class_="bar", stroke_width=1 / 3, hidden=True, id=None, lang=False)
    assert made == '<rect class="bar" stroke-width="0.33" hidden></rect>'
    assert tag("br") == "<br>"
    assert tag("p", None, tag("b", "x"), "<") == "<p><b>x</b>&lt;</p>"
    assert join(["<", tag("i")], ", ") == "&lt;, <i></i>"
