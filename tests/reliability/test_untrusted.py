"""Bytes that strangers made: crafted files and fuzz over every parser of ours, in bounded time and memory."""

import random
import signal
from collections.abc import Iterator, Mapping

import pytest

from benchmarks.reliability_cases.fuzzing import fuzz
from benchmarks.reliability_cases.hostile import Crafted, crafted, hostile_names
from benchmarks.reliability_cases.meter import measured
from benchmarks.reliability_cases.parsers import Parser, make_parsers, outcome

MOST_GROWTH = 64 << 20  # bytes
HANG_SECONDS = 30  # of CPU: far more than any input needs on any machine; the long form measures


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Parser]:
    return make_parsers(tmp_path_factory.mktemp("parsers"))


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def hung(*_: object) -> None:
        raise AssertionError(f"more than {HANG_SECONDS} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(scope="module")
def cases(parsers: Mapping[str, Parser]) -> list[Crafted]:
    return crafted({name: parser.seeds[0] for name, parser in parsers.items()})


def test_there_are_many_crafted_files_and_names(cases: list[Crafted]) -> None:
    assert len({(case.parser, case.data) for case in cases if case.parser != "names"}) >= 300
    assert len(set(hostile_names())) >= 500


def test_every_crafted_file_is_refused_in_bounded_memory(
    parsers: Mapping[str, Parser], cases: list[Crafted], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = []
    for case in cases:
        if case.parser == "names":
            outcome(parsers["names"], case.data)  # which looks itself that nothing unsafe is taken
            continue
        told: list[str] = []
        cost = measured(lambda case=case, told=told: told.append(outcome(parsers[case.parser], case.data)))
        if (told == ["accepted"] and not case.harmless) or cost.growth > MOST_GROWTH:
            wrong.append((case.parser, case.what, told, cost))
        caplog.clear()
    assert not wrong


def test_honest_inputs_are_accepted(parsers: Mapping[str, Parser]) -> None:
    refused = {parser.name: outcome(parser, seed) for parser in parsers.values() for seed in parser.seeds}
    assert {name for name, told in refused.items() if told != "accepted"} <= {
        "delta payload", "adapter_config.json", "evaluation rows", "safetensors header", "upload.json"
    }  # fmt: skip


@pytest.mark.parametrize("name", range(31))
def test_fuzzed_inputs_are_taken_or_refused(parsers: Mapping[str, Parser], name: int) -> None:
    parser = list(parsers.values())[name % len(parsers)]
    found = fuzz(parser, random.Random(), inputs=200, limit=HANG_SECONDS)
    assert found.inputs == 200
