"""The engine as the front sees it: messages in, messages out."""

from __future__ import annotations

import random
import shutil
import time

import pytest

from services.worker.messages import Abort, Drop, Load, Pause, Stats, Wanted

PROMPT = [5, 9, 2, 77, 30]


def wanted(rig) -> list[str]:
    return [m.revision for m in rig.sent if isinstance(m, Wanted)]


def stats(rig) -> Stats:
    return [m for m in rig.sent if isinstance(m, Stats)][-1]


@pytest.fixture
def rig(llama, make_rig):
    return make_rig(llama)


def test_ready_tells_the_context_that_fits(llama, make_rig):
    assert make_rig(llama).ready.context_length == 256
    small = make_rig(llama, kv_bytes=10 * 4 * 3 * 2 * 2 * 16 * 4).ready
    assert (small.kv_blocks, small.context_length, small.vocab_size) == (9, 36, 96)


def test_the_first_output_says_that_prefill_started(rig):
    rig.add(1, list(range(60)) + list(range(30)), max_tokens=2)
    rig.run()
    first, *rest = rig.outputs[1]
    assert first.prefill_started
    assert first.tokens == []
    assert not any(output.prefill_started for output in rest)
    assert (len(rig.tokens(1)), rig.finish(1)) == (2, "length")


def test_stop_tokens_end_a_sequence_and_are_its_last(rig):
    rig.add(1, PROMPT, max_tokens=6)
    rig.run()
    third = rig.tokens(1)[2]
    rig.add(2, PROMPT, stop_token_ids=[third])
    rig.run()
    assert rig.outputs[2][-1].stop_token == third
    assert rig.tokens(2) == rig.tokens(1)[: rig.tokens(1).index(third) + 1]
    assert rig.finish(2) == "stop"


def test_a_resumed_sequence_draws_the_same_tokens(rig):
    options = {"temperature": 1.0, "seed": 1 << 63, "frequency_penalty": 0.3, "max_tokens": 12}
    rig.add(1, PROMPT, **options)
    rig.run()
    rig.add(2, PROMPT, resume=rig.tokens(1)[:7], **options)
    rig.run()
    assert rig.tokens(2) == rig.tokens(1)[7:]


def test_resuming_what_is_already_complete_ends_at_once(rig):
    rig.add(1, PROMPT, resume=[1, 2], max_tokens=2)
    rig.add(2, PROMPT, resume=[1, 2], max_tokens=5, stop_token_ids=[2])
    rig.step()
    assert rig.finish(1) == "length"
    assert (rig.finish(2), rig.outputs[2][0].stop_token) == ("stop", 2)


def test_seeds_give_the_same_tokens_whatever_else_is_in_the_batch(rig, llama, pack):
    rig.load("t@1", pack(llama, "int4"))
    rig.add(1, PROMPT, "t@1", temperature=0.9, top_p=0.95, seed=7, max_tokens=20)
    rig.run()
    for i in range(2, 12):
        rig.add(i, PROMPT * (i // 2), ["", "t@1"][i % 2], temperature=1.0, seed=i, max_tokens=i)
    rig.add(20, PROMPT, "t@1", temperature=0.9, top_p=0.95, seed=7, max_tokens=20)
    rig.run()
    assert rig.tokens(20) == rig.tokens(1)


def test_the_context_ends_a_sequence(rig):
    rig.add(1, [3] * 250, max_tokens=1000)
    rig.run()
    assert (len(rig.tokens(1)), rig.finish(1)) == (6, "length")


def test_bad_sequences_fail_alone(rig):
    rig.add(1, PROMPT)
    rig.add(1, PROMPT)
    rig.add(2, [])
    rig.add(3, [96])
    rig.add(4, [-1])
    rig.run()
    assert [rig.finish(i) for i in (1, 2, 3, 4)] == ["length", "error", "error", "error"]
    assert "the model has 0 to 95" in rig.outputs[3][-1].error
    assert stats(rig).kv_blocks_free == rig.ready.kv_blocks


def test_abort_frees_memory_before_the_next_step_and_is_not_answered(rig):
    rig.add(1, PROMPT, max_tokens=100)
    rig.step()
    rig.engine.handle(Abort(1), rig.now)
    rig.engine.handle(Abort(99), rig.now)
    count = len(rig.outputs[1])
    assert not rig.step()
    assert rig.engine.idle
    assert len(rig.outputs[1]) == count
    assert stats(rig).kv_blocks_free == rig.ready.kv_blocks


def test_pause_holds_a_sequence_back(rig):
    rig.add(1, PROMPT, max_tokens=5)
    rig.step()
    rig.engine.handle(Pause(1, True), rig.now)
    assert not rig.step()
    rig.engine.handle(Pause(1, False), rig.now)
    rig.run()
    assert len(rig.tokens(1)) == 5


def test_deadlines_end_sequences(rig):
    rig.add(1, PROMPT, max_tokens=200, deadline=rig.now + 0.01)
    rig.add(2, PROMPT, "away@1", prefill_deadline=rig.now + 0.002)
    rig.run()
    assert (rig.finish(1), rig.finish(2)) == ("deadline", "deadline")


def test_a_missing_delta_is_wanted_once_and_its_sequences_wait(rig, llama, pack):
    rig.add(1, PROMPT, "t@1")
    rig.add(2, PROMPT, "t@1")
    rig.add(3, PROMPT)
    for _ in range(20):
        rig.step()
    assert wanted(rig) == ["t@1"]
    assert rig.finish(3) == "length"
    changed = rig.load("t@1", pack(llama, "int4"))
    assert changed.bytes > 0
    assert changed.load_seconds > 0
    rig.run()
    assert rig.finish(1) == rig.finish(2) == "length"


def test_loading_twice_answers_twice_and_reads_once(rig, llama, pack, tmp_path):
    copy = shutil.copytree(pack(llama, "int4"), tmp_path / "copy")
    rig.load("t@1", copy)
    shutil.rmtree(copy)
    assert rig.load("t@1", copy).state == "resident"
    rig.add(1, PROMPT, "t@1")
    rig.run()
    assert rig.finish(1) == "length"


def test_a_delta_that_does_not_load_fails_its_sequences_only(rig, llama, pack, tmp_path):
    broken = shutil.copytree(pack(llama, "int4"), tmp_path / "broken")
    payload = broken / "delta.safetensors"
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(bytes(data))
    rig.add(1, PROMPT, "t@1")
    rig.add(2, PROMPT)
    changed = rig.load("t@1", broken)
    assert (changed.state, changed.error_code) == ("failed", "CHECKSUM_MISMATCH")
    rig.run()
    assert (rig.finish(1), rig.finish(2)) == ("error", "length")
    assert rig.outputs[1][-1].error == changed.error
    assert rig.load("t@1", pack(llama, "int4")).state == "resident", "the next load is a new chance"


def test_a_delta_of_another_base_is_refused(rig, pack, tmp_path):
    from tests.services.worker.engine.conftest import random_model

    other = random_model(tmp_path, "llama", initializer_range=0.1)
    assert rig.load("t@1", pack(other, "int4")).error_code == "BASE_MISMATCH"


def test_idle_deltas_make_room_and_are_wanted_again(llama, make_rig, pack):
    size = make_rig(llama).load("t@1", pack(llama, "int4")).bytes
    rig = make_rig(llama, delta_bytes=2 * size + 10)
    for i in range(3):
        rig.load(f"t@{i}", pack(llama, "int4", seed=i))
    assert rig.wait_for("t@0", "dropped")
    rig.add(1, PROMPT, "t@0")
    rig.step()
    assert wanted(rig) == ["t@0"]
    assert stats(rig).delta_bytes_used == 2 * size
    assert rig.load("t@9", pack(llama, "dense")).error_code == "QUOTA_EXCEEDED"


def test_more_deltas_than_memory_all_get_their_turn(llama, make_rig, pack):
    """Room for one delta, three in constant demand: the front answers every Wanted, everyone finishes."""
    folders = {f"t@{i}": pack(llama, "int4", seed=i) for i in range(3)}
    size = make_rig(llama).load("t@1", folders["t@1"]).bytes
    rig = make_rig(llama, delta_bytes=size + 10, max_wait_seconds=0.01)
    for i in range(12):
        rig.add(i, PROMPT, f"t@{i % 3}", max_tokens=60)
    answered = 0
    end = time.monotonic() + 120  # loads run in a thread: steps pass while they do, the more the busier the machine is
    while time.monotonic() < end:
        rig.step()
        for revision in wanted(rig)[answered:]:
            answered += 1
            rig.engine.handle(Load(revision, str(folders[revision])), rig.now)
        if rig.engine.idle:
            break
    assert {rig.finish(i) for i in range(12)} == {"length"}
    alone = make_rig(llama)
    for i in range(3):
        alone.load(f"t@{i}", folders[f"t@{i}"])
        alone.add(i, PROMPT, f"t@{i}", max_tokens=60)
    alone.run()
    assert all(rig.tokens(i) == alone.tokens(i % 3) for i in range(12))


def test_drop_waits_for_the_last_user(rig, llama, pack):
    rig.load("t@1", pack(llama, "int4"))
    rig.add(1, PROMPT, "t@1", max_tokens=4)
    rig.step()
    rig.engine.handle(Drop("t@1"), rig.now)
    assert rig.wait_for("t@1", "dropped")
    assert rig.finish(1) == "length"
    rig.engine.handle(Drop("t@1"), rig.now)
    assert rig.wait_for("t@1", "dropped")


def test_stats_are_sparse_and_tell_the_end(rig, llama, pack):
    rig.load("t@1", pack(llama, "int4"))
    rig.add(1, PROMPT, "t@1", max_tokens=100)
    rig.sent.clear()
    rig.run()
    reports = [m for m in rig.sent if isinstance(m, Stats)]
    assert len(reports) <= 2
    assert (reports[-1].running, reports[-1].waiting) == (0, 0)
    assert reports[-1].step_seconds == pytest.approx(0.001)
    assert reports[-1].deltas[0].revision == "t@1"


@pytest.mark.parametrize("codec", ["sign1", "int4"])
def test_tokens_are_the_same_with_and_without_the_prefix_cache(codec, llama, make_rig, pack):
    """Turns of conversations that share beginnings, of the base and two deltas, some aborted, some over and over."""
    rng = random.Random(codec)
    beginnings = [[rng.randrange(96) for _ in range(rng.randint(9, 40))] for _ in range(3)]
    asked = [
        (["", "t@1", "t@2"][i % 3], rng.choice(beginnings) + [rng.randrange(96) for _ in range(rng.randint(0, 9))])
        for i in range(24)
    ]
    found = []
    for prefix_cache in (True, False):
        rig = make_rig(llama, prefix_cache=prefix_cache, kv_bytes=4 * 3 * 2 * 2 * 16 * 4 * 80)
        for seed in (1, 2):
            rig.load(f"t@{seed}", pack(llama, codec, seed=seed))
        for i, (revision, prompt) in enumerate(asked):
            rig.add(i, prompt, revision, max_tokens=1 + i % 12)
            for _ in range(i % 4):
                rig.step()
        rig.run()
        found.append([rig.tokens(i) for i in range(len(asked))])
        assert (rig.engine.prefix_hits > 0) == prefix_cache
        assert stats(rig).kv_blocks_free == rig.ready.kv_blocks
    assert found[0] == found[1]


def test_a_revision_that_comes_back_with_other_contents_finds_nothing_of_before(llama, make_rig, pack):
    prompt = [7] * 30
    rig, alone = make_rig(llama), make_rig(llama)
    rig.load("t@1", pack(llama, "int4", seed=1))
    rig.add(1, prompt, "t@1")
    rig.run()
    rig.engine.handle(Drop("t@1"), rig.now)
    rig.wait_for("t@1", "dropped")
    rig.load("t@1", pack(llama, "int4", seed=2))
    rig.add(2, prompt, "t@1")
    rig.run()
    assert rig.engine.prefix_hits == 0
    alone.load("t@1", pack(llama, "int4", seed=2))
    alone.add(2, prompt, "t@1")
    alone.run()
    assert rig.tokens(2) == alone.tokens(2) != rig.tokens(1)
    rig.add(3, prompt, "t@1")
    rig.run()
    assert rig.engine.prefix_hits == 28
    assert rig.tokens(3) == rig.tokens(2)


def test_what_a_cached_token_saves_is_reported(llama, make_rig):
    for prefix_cache in (True, False):
        rig = make_rig(llama, prefix_cache=prefix_cache)
        for i in range(40):
            rig.add(i, [i] * 40, max_tokens=3)
            while not rig.engine.idle:
                waited = i not in rig.outputs
                rig.step()
                rig.now += 0.0001 * 40 * (waited and i in rig.outputs)  # steps with a prompt take longer
            rig.step()
        rig.now += 1
        rig.step()
        assert (stats(rig).prefix_token_seconds > 0) == prefix_cache
