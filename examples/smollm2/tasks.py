"""Two labelled tasks of real data for SmolLM2, in the layout of a zoo: train.jsonl, val.jsonl, test.jsonl a folder.

    apt-cache dumpavail > available.txt
    .venv/bin/python -m examples.smollm2.tasks --mlconjug mlconjug3-*.whl --available available.txt --zoo zoo

`conj_es`: Spanish verb, tense, person → form, after the tables of mlconjug3 (MIT). `section`: name and synopsis of a
Debian package → its section of the archive, after the archive's own index. No verb, and no source package, is in two
splits. `zoo/base` must be there: prompts are what its chat template makes of a user's message.
"""

from __future__ import annotations

import argparse
import json
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 0
SPLITS = {"train": 6000, "val": 500, "test": 1000}

_TABLES = "mlconjug3/data/conjug_manager"
_PERSONS = ("yo", "tú", "él", "nosotros", "vosotros", "ellos")
_TENSES = {
    "presente": ("Indicativo", "Indicativo presente"),
    "imperfecto": ("Indicativo", "Indicativo pretérito imperfecto"),
    "pretérito": ("Indicativo", "Indicativo pretérito perfecto simple"),
    "futuro": ("Indicativo", "Indicativo futuro"),
    "condicional": ("Condicional", "Condicional"),
    "subjuntivo presente": ("Subjuntivo", "Subjuntivo presente"),
    "subjuntivo imperfecto": ("Subjuntivo", "Subjuntivo pretérito imperfecto (1)"),
}
_SECTIONS = 24  # the commonest ones
_ENDINGS = ("ar", "er", "ir")
_FORMS_A_VERB = 3

Row = tuple[str, str]
"""What the user says, and the answer."""


def conjugations(wheel: Path, order: random.Random) -> Iterator[list[Row]]:
    """Yields, verb after verb, some of its forms."""
    with zipfile.ZipFile(wheel) as archive:
        verbs = json.loads(archive.read(f"{_TABLES}/verbs-es.json"))
        tables = json.loads(archive.read(f"{_TABLES}/conjugation-es.json"))
    names = [name for name in sorted(verbs) if name.endswith(_ENDINGS) and name.isalpha()]
    order.shuffle(names)
    for name in names:
        forms = list(_forms(verbs[name]["root"], tables[verbs[name]["template"]]))
        chosen = order.sample(forms, min(_FORMS_A_VERB, len(forms)))
        yield [(f"Conjugate {name}: {tense}, {person}", form) for tense, person, form in chosen]


def _forms(root: str, table: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for tense, (mood, name) in _TENSES.items():
        endings = table.get(mood, {}).get(name, [])
        if len(endings) == len(_PERSONS):
            for person, (_, ending) in zip(_PERSONS, endings, strict=True):
                if ending:
                    yield tense, person, root + ending


def sections(available: Path, order: random.Random) -> Iterator[list[Row]]:
    """Yields, source package after source package, one of its packages."""
    sources: dict[str, list[dict[str, str]]] = {}
    for package in _packages(available.read_text()):
        sources.setdefault(package.get("Source", package["Package"]).split(" ")[0], []).append(package)
    chosen = [order.choice(sources[name]) for name in sorted(sources)]
    common = {name for name, _ in Counter(_section(package) for package in chosen).most_common(_SECTIONS)}
    order.shuffle(chosen)
    seen: set[str] = set()
    for package in chosen:
        synopsis = package["Description"]
        if _section(package) in common and synopsis not in seen:
            seen.add(synopsis)
            yield [(f"Section of the Debian package {package['Package']}: {synopsis}", _section(package))]


def _packages(text: str) -> Iterator[dict[str, str]]:
    for paragraph in text.split("\n\n"):
        lines = [line.partition(": ") for line in paragraph.splitlines() if line and not line.startswith(" ")]
        fields = {key: value for key, _, value in lines}
        if {"Package", "Section", "Description"} <= fields.keys():
            yield fields


def _section(package: dict[str, str]) -> str:
    return package["Section"].rpartition("/")[2]  # without the area, as in contrib/net


def write(folder: Path, groups: Iterator[list[Row]], template: Any) -> None:
    """Fills the splits one after the other, a group whole or cut at a split's end.

    Raises:
        ValueError: there are too few rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        rows: list[Row] = []
        while len(rows) < count:
            group = next(groups, None)
            if group is None:
                raise ValueError(f"{folder.name}: {len(rows)} rows for {split}; expected {count}")
            rows += group
        lines = [{"prompt": template(said), "targets": [answer]} for said, answer in rows[:count]]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)


def main() -> None:
    """Reads the arguments and writes both tasks."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlconjug", type=Path, required=True, help="wheel of mlconjug3")
    parser.add_argument("--available", type=Path, required=True, help="output of apt-cache dumpavail")
    parser.add_argument("--zoo", type=Path, required=True, help="folder with base/")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.zoo / "base")

    def template(said: str) -> str:
        messages = [{"role": "user", "content": said}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    write(arguments.zoo / "conj_es", conjugations(arguments.mlconjug, random.Random(SEED)), template)
    write(arguments.zoo / "section", sections(arguments.available, random.Random(SEED)), template)


if __name__ == "__main__":
    main()
