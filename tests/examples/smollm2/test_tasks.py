import json
import random
import zipfile
from pathlib import Path

import pytest

from examples.smollm2 import tasks

PRESENT = {"yo": "o", "tú": "as", "él": "a", "nosotros": "amos", "vosotros": "áis", "ellos": "an"}
TABLE = {
    "Indicativo": {"Indicativo presente": [[i, ending] for i, ending in enumerate(PRESENT.values())]},
    "Gerundio": {"Gerundio": [[0, "ando"], [1, "ado"]]},
}
AVAILABLE = """Package: alpha
Source: one (1.0)
Section: net
Description: the first
Tag: role::program,
 use::gameplaying

Package: alpha-doc
Source: one
Section: doc
Description: the first, documented

Package: beta
Section: contrib/net
Description: the second

Package: gamma
Section: net
Description: the second

Package: nameless
Section: net
"""


def test_conjugations_are_root_and_ending(tmp_path: Path) -> None:
    wheel = tmp_path / "mlconjug3-0-py3-none-any.whl"
    verbs = {name: {"root": name[:-2], "template": ":ar"} for name in ("cantar", "hablar", "irse")}
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mlconjug3/data/conjug_manager/verbs-es.json", json.dumps(verbs))
        archive.writestr("mlconjug3/data/conjug_manager/conjugation-es.json", json.dumps({":ar": TABLE}))
    groups = list(tasks.conjugations(wheel, random.Random(0)))
    assert len(groups) == 2
    for group in groups:
        assert len(group) == 3
        for said, answer in group:
            verb, person = said.removeprefix("Conjugate ").split(": presente, ")
            assert answer == verb[:-2] + PRESENT[person]


def test_sections_take_one_package_a_source_and_no_synopsis_twice(tmp_path: Path) -> None:
    available = tmp_path / "available.txt"
    available.write_text(AVAILABLE)
    rows = [row for group in tasks.sections(available, random.Random(0)) for row in group]
    assert len(rows) == 2
    packages = [said.split()[5].rstrip(":") for said, _ in rows]
    assert sum(name.startswith("alpha") for name in packages) == 1
    assert sum(name in ("beta", "gamma") for name in packages) == 1
    assert {answer for _, answer in rows} <= {"net", "doc"}


def test_splits_share_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SPLITS", {"train": 4, "test": 3})
    groups = [[(f"{group}", f"{part}") for part in range(3)] for group in range(4)]
    tasks.write(tmp_path, iter(groups), lambda said: f"<{said}>")
    rows = {split: (tmp_path / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test")}
    said = {split: {json.loads(line)["prompt"] for line in lines} for split, lines in rows.items()}
    assert [len(lines) for lines in rows.values()] == [4, 3]
    assert said == {"train": {"<0>", "<1>"}, "test": {"<2>"}}
    with pytest.raises(ValueError, match="expected 4"):
        tasks.write(tmp_path, iter(groups[:1]), str)
