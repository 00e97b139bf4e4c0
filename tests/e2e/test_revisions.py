"""Revisions behind an alias with real services: switch, canary, shadow, rollback and deletion, by SDK and command."""

from __future__ import annotations

import asyncio
import secrets
import sys

import pytest

from deltaserve import errors
from deltaserve.client import Completion
from deltaserve.v1 import admin_pb2
from tests.e2e.conftest import MODELS, System, prompts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(900)]


async def command(system: System, *words: str) -> str:
    """Runs the command line; returns what it said, its status among it when it is not 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deltaserve.cli", *words, "--server", system.stack.address,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode() + (f"status {process.returncode}" if process.returncode else "")


async def ask(system: System, model: str, prompt: str, **options: object) -> tuple[str, Completion]:
    """Returns the revision that answered, and what."""
    async with system.client.generate(model, prompt, max_tokens=24, **options) as stream:  # type: ignore[arg-type]
        done = await stream.completion()
        assert stream.accepted is not None
        return stream.accepted.revision, done


async def until_revision(system: System, model: str, revision: str) -> None:
    async with asyncio.timeout(120):
        while (await ask(system, model, "a"))[0] != revision:
            await asyncio.sleep(0.2)


async def test_the_life_of_an_alias(system: System) -> None:
    client = system.client
    for codec in ("int4", "sign1"):  # revisions 1 and 2: one close to the fine-tune, one not so close
        await system.publish("verbs", MODELS / "conj_fr", codec=codec, calibration_samples=16)
    questions = prompts("conj_fr", 8)

    assert await command(system, "alias", "live", "verbs@1") == "live -> verbs@1\n"
    await until_revision(system, "live", "1")
    for question in questions[:3]:
        (revision, through), (_, direct) = [await ask(system, m, question, temperature=0) for m in ("live", "verbs@1")]
        assert (revision, through.token_ids) == ("1", direct.token_ids)

    # a canary: keys keep to their revision, and both get some
    await client.set_alias("live", {"verbs@1": 1, "verbs@2": 1}, expected_version=1)
    keys = [secrets.token_hex(4) for _ in range(8)]
    async with asyncio.timeout(120):
        while len({(await ask(system, "live", "a", sticky_key=key))[0] for key in keys}) < 2:
            await asyncio.sleep(0.3)
    first = [(await ask(system, "live", "a", sticky_key=key))[0] for key in keys]
    assert [(await ask(system, "live", "a", sticky_key=key))[0] for key in keys] == first

    # the shadow agrees with its primary as often as asking both says
    await command(system, "alias", "live", "verbs@1", "--shadow", "verbs@2", "--share", "1")
    async with asyncio.timeout(180):
        while not await system.client.shadows():
            await ask(system, "live", "a")
    before = await settled_counts(system)
    same = agreed = 0
    for question in questions:
        _, answer = await ask(system, "live", question, temperature=0)
        _, other = await ask(system, "verbs@2", question, temperature=0)
        same += answer.token_ids == other.token_ids
        agreed += _common(answer.token_ids[0], other.token_ids[0])
        after = await settled_counts(system)
    counts = [now - former for now, former in zip(after, before, strict=True)]
    compared, dropped, failed, identical, tokens = counts
    assert failed == 0
    assert compared + dropped == len(questions)
    if compared == len(questions):
        assert (identical, tokens) == (same, agreed)
    said = await command(system, "shadows")
    assert "verbs@1" in said
    assert "verbs@2" in said

    # in use: by the shadow, then by nobody
    assert "points at 'verbs@2'" in await command(system, "delete", "verbs@2", "--yes")
    assert "live -> verbs@1 (50.0%), verbs@2 (50.0%)" in await command(system, "rollback", "live")
    assert "live -> verbs@1 (version 1 again, now 5)" in await command(system, "rollback", "live")
    with pytest.raises(errors.PreconditionError):
        await client.rollback_alias("live")
    versions = (await client.aliases("live", history=True))[0].versions
    assert [(v.number, v.restores) for v in versions] == [(5, 1), (4, 2), (3, 0), (2, 0), (1, 0)]

    # a stream keeps its revision from being deleted, and keeps it to its end when that is forced
    whole = await client.complete("verbs@2", questions[0], max_tokens=200, ignore_eos=True, temperature=0)
    async with client.generate("verbs@2", questions[0], max_tokens=200, ignore_eos=True, temperature=0) as stream:
        tokens_read: list[int] = []
        async for frame in stream:
            tokens_read += frame.chunk.token_ids
            if len(tokens_read) == 1:
                assert "streams use verbs@2" in await command(system, "delete", "verbs@2", "--yes")
                assert await command(system, "delete", "verbs@2", "--yes", "--force") == "verbs@2 deleted\n"
    assert tokens_read == whole.token_ids[0]
    await until_revision(system, "verbs", "1")


async def settled_counts(system: System) -> tuple[int, int, int, int, int]:
    """Waits until no shadow runs; returns requests compared, not compared, failed and identical, and tokens agreed."""
    async with asyncio.timeout(180):
        while True:
            pairs = [p for p in await system.client.shadows() if p.shadow == "verbs@2"]
            p = pairs[0] if pairs else admin_pb2.ShadowPair()
            if p.sampled == p.compared + p.dropped + p.skipped + p.failed:
                return p.compared, p.dropped + p.skipped, p.failed, p.identical, p.tokens_agreed
            await asyncio.sleep(0.05)


def _common(left: list[int], right: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
