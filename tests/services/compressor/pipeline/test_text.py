import json
from pathlib import Path

import pytest

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.errors import InvalidArgumentError
from services.compressor.pipeline.rows import Chat, Labelled, Row, Text
from services.compressor.pipeline.text import Tokenizer, open_tokenizer
from tests.services.compressor.pipeline.conftest import save_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    save_tokenizer(tmp_path)
    return Tokenizer(tmp_path, 264, ())


def asked(tokenizer: Tokenizer, row: Row) -> list[bool]:
    return tokenizer.asked(row, tokenizer.tokens(row))


def test_rows_become_tokens(tokenizer: Tokenizer):
    plain, letter = tokenizer.tokens(Text("ab")), tokenizer.tokens(Text("c"))
    assert len(plain) == 2
    assert tokenizer.ends == (0,)
    assert tokenizer.tokens(Labelled("<s1>ab", ("c", "x"))) == [1, *plain, *letter, 0]
    assert tokenizer.tokens(Chat([{"role": "user", "content": "ab"}])) == [1, *plain, 0]
    tokenizer.blank = " "
    assert len(tokenizer.tokens(Labelled("<s1>ab", ("c",)))) == 6


def test_prompt_keeps_its_tokens_when_it_would_merge_with_the_answer(tmp_path: Path):
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["ab"] = 264
    content["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path, 265, ())
    a, b, c = (tokenizer.tokens(Text(letter))[0] for letter in "abc")
    assert tokenizer.tokens(Text("ab")) == [264]
    assert tokenizer.labelled("a", "b") == ([a], [b, 0])
    assert tokenizer.labelled("a", "cab") == ([a], [c, 264, 0])


def test_ids_beyond_the_embedding(tmp_path: Path):
    save_tokenizer(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"makes token .* the embedding has 9 rows"):
        Tokenizer(tmp_path, 9, ()).tokens(Text("abc"))


def test_broken_tokenizer(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="cannot be loaded"):
        Tokenizer(tmp_path, 9, ())


def test_no_template(tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only users') }}")
    with pytest.raises(InvalidArgumentError, match="only users"):
        Tokenizer(tmp_path, 264, ()).tokens(Chat([{"role": "user", "content": "a"}]))


def test_the_base_tokenizer_serves_when_the_fine_tune_has_none(pair: tuple[Path, Path]):
    base, tuned = map(Checkpoint.open, pair)
    for path in pair[1].glob("*token*"):
        path.unlink()
    (pair[1] / "generation_config.json").write_text('{"eos_token_id": [3, 0]}')
    assert open_tokenizer(base, tuned).ends == (3, 0)
    for path in pair[0].glob("*token*"):
        path.unlink()
    with pytest.raises(InvalidArgumentError, match="neither fine-tune nor base has a tokenizer"):
        open_tokenizer(base, tuned)


def test_what_is_asked_of_the_fine_tune(tokenizer: Tokenizer):
    assert asked(tokenizer, Text("abc")) == [True] * 3
    tokenizer.blank = " "
    assert asked(tokenizer, Labelled("<s1>ab", ("c", "x"))) == [False] * 3 + [True] * 3
    turns = [("user", "ab"), ("assistant", "c"), ("user", "d"), ("assistant", "efg")]
    chat = Chat([{"role": role, "content": content} for role, content in turns])
    expected = [False] * 4 + [True] * 3 + [False] * 3 + [True] * 5
    assert asked(tokenizer, chat) == expected
    assert asked(tokenizer, Chat(chat.messages[:1])) == [True] * 4  # nothing is said by the assistant


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # a prompt for the answer belongs to the question
        (
            "{% for m in messages %}<s1>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<s1>{% endif %}",
            "--.++",
        ),
        # what changes once more is said cannot be told apart
        ("{{ messages|length }}{% for m in messages %}<s1>{{ m.content }}{% endfor %}", "++++++"),
        ("{% if messages|length < 2 %}{{ raise_exception('more') }}{% endif %}abcde", "+++++"),
    ],
)
def test_templates_that_show_where_turns_begin_and_others(tmp_path: Path, template: str, expected: str):
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(tmp_path, 264, ())
    chat = Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}])
    assert len(expected) == len(tokenizer.tokens(chat))
    assert asked(tokenizer, chat) == [sign == "+" for sign in expected]


def test_tokens_become_text_again(tokenizer: Tokenizer):
    text = "<s1>Fé\n <eos>x"
    assert tokenizer.text(tokenizer.tokens(Text(text))) == text
    assert tokenizer.text([1, 263, 9999]) == tokenizer.text([1, 263]) + "\ufffd"
    assert tokenizer.text([]) == ""
