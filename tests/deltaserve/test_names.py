import pytest

from deltaserve.errors import InvalidArgumentError
from deltaserve.names import RevisionName, check_file_name, check_name, parse_model, parse_resource, parse_revision

HOSTILE = [
    "",
    ".",
    "..",
    "a..b",
    "../a",
    "/a",
    "a/b",
    "a\\b",
    "A",
    "a b",
    "a\n",
    "a\x00",
    "-a",
    ".a",
    "é",
    "a" * 64,
    "a%2e",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_with_the_field(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_name(name, "model")
    assert refused.value.field == "model"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc/passwd", "a\\b", ".hidden", "a\x00", "a" * 129])
def test_hostile_file_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_file_name(name, "files.path")


def test_good_names_pass() -> None:
    assert check_name("g2p", "model") == "g2p"
    assert check_name("a" * 63, "model") == "a" * 63
    assert check_file_name("model-00001-of-00002.safetensors", "path") == "model-00001-of-00002.safetensors"


def test_models_and_revisions_parse() -> None:
    assert parse_model("g2p") == ("g2p", None)
    assert parse_model("g2p@12") == ("g2p", "12")
    assert parse_revision("g2p@12") == RevisionName("g2p", "12")
    assert str(RevisionName("g2p", "12")) == "g2p@12"
    assert parse_resource(RevisionName("g2p", "12").resource) == ("g2p", "12")
    assert parse_resource("models/g2p") == ("g2p", None)


@pytest.mark.parametrize("text", ["g2p@", "g2p@0", "g2p@-1", "g2p@1.0", "g2p@1@2", "g2p@latest", "g2p@٣", "@1"])
def test_bad_revisions_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_model(text)


@pytest.mark.parametrize("text", ["g2p", "models/", "models/g2p/", "models/g2p/revisions", "models/../revisions/1"])
def test_bad_resources_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_resource(text)
