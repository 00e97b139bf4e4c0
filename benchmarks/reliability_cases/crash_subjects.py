"""What is crashed: a day in the life of the store (publication, job log, settings), and an upload; and the checks."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import google_crc32c
import msgspec

from benchmarks.reliability_cases.crash_states import Recorder
from benchmarks.reliability_cases.tiny import Tiny
from deltaserve.catalog import ALIAS, PIN, Catalog, read_setting, write_setting
from deltaserve.delta.manifest import MANIFEST_FILE, parse_manifest
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import PreconditionError
from deltaserve.names import RevisionName
from deltaserve.store import Store, delta_key
from services.compressor import publication
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.records import JobRecord
from services.compressor.uploads.declaration import Declaration, DeclaredFile
from services.compressor.uploads.uploads import Limits, Uploads

_ROOMY = Limits(1 << 40, 0)
_CHUNK = 1000


async def live_store(folder: Path, tiny: Tiny, recorder: Recorder, more: int = 0) -> None:
    """Three jobs (and `more`) run and publish, an alias moves, a pin is set, a revision is withdrawn."""
    store = Store.open(str(folder))
    log = JobLog(store)
    for number, model in ((1, "a"), (2, "a"), (1, "b"), *((number, "c") for number in range(more))):
        job = f"j-{model}-{number}"
        record = await log.create(JobRecord(job_id=job, spec={"model": model}, created=time.time(), updated=0.0))
        recorder.acknowledge(f"job {job} 0")
        record = await log.append(record, state="running", owner="me")
        revision = await publication.reserve(store, model, job)
        name = RevisionName(model, revision)
        manifest = await publication.upload_files(store, name, tiny.packed)
        record = await log.append(record, revision=revision)
        recorder.acknowledge(f"job {job} {record.number}")
        await publication.publish_manifest(store, name, manifest, job)
        recorder.acknowledge(f"revision {name}")
        await log.append(record, state="succeeded")
        recorder.acknowledge(f"job {job} {record.number + 1}")
    for target in ("a@1", "a@2"):
        await write_setting(store, ALIAS, "best", {"target": target})
        recorder.acknowledge(f"alias {target}")
    await write_setting(store, PIN, "a", {"pinned": True})
    recorder.acknowledge("pin a")
    recorder.acknowledge("withdrawing b@1")
    await publication.withdraw(store, RevisionName("b", "1"))


async def check_store(folder: Path, acknowledged: tuple[str, ...]) -> int:
    """Opens a store after a crash; returns how many revisions it verified.

    Raises:
        AssertionError: something acknowledged is lost.
        DeltaServeError: something that is listed cannot be read.
    """
    store, verified = Store.open(str(folder)), 0
    models = {record.name: record for record in await Catalog(store).models()}
    for record in models.values():
        for revision in record.revisions:
            await _check_revision(store, RevisionName(record.name, revision), "withdrawing b@1" not in acknowledged)
            verified += 1
    jobs = {record.job_id: record for record in await JobLog(store).all()}
    aliases = [what.split()[1] for what in acknowledged if what.startswith("alias ")]
    for what in acknowledged:
        kind, name, *rest = what.split()
        if kind == "job":
            assert name in jobs, f"{what} is lost"
            assert jobs[name].number >= int(rest[0]), f"{what} is lost: the newest is {jobs[name].number}"
        elif kind == "revision" and not (name == "b@1" and "withdrawing b@1" in acknowledged):
            model, _, revision = name.partition("@")
            assert model in models, f"{what} is lost"
            assert revision in models[model].revisions, f"{what} is lost"
        elif kind == "pin":
            assert await read_setting(store, PIN, "a") == {"pinned": True}
    if aliases:
        found = await read_setting(store, ALIAS, "best")
        assert found is not None, "the alias is lost"
        assert found["target"] in {"a@2", aliases[-1]}, f"the alias is back at {found}"
    return verified


async def go_on_with_store(folder: Path, tiny: Tiny) -> None:
    """A compressor that starts after the crash publishes again under the same job: nothing in the way may stop it."""
    store = Store.open(str(folder))
    revision = await publication.reserve(store, "a", "j-a-1")
    name = RevisionName("a", revision)
    if not await publication.published_by(store, name, "j-a-1"):
        manifest = await publication.upload_files(store, name, tiny.packed)
        await publication.publish_manifest(store, name, manifest, "j-a-1")
    await _check_revision(store, name, whole=True)


async def _check_revision(store: Store, name: RevisionName, whole: bool) -> None:
    manifest = parse_manifest(await store.get(delta_key(name, MANIFEST_FILE)))
    for entry in manifest.files:
        if entry.source == "delta":
            data = await store.get(delta_key(name, entry.path))
            assert len(data) == entry.size, f"{name} has {len(data)} bytes of {entry.path}"
            assert hashlib.sha256(data).hexdigest() == entry.sha256, f"{name} has other bytes in {entry.path}"
    if whole and store.uri.startswith("file://"):
        DeltaReader.open(Path(store.uri.removeprefix("file://")) / "deltas" / name.model / name.revision)


def contents(seed: int = 0) -> dict[str, bytes]:
    """Returns the files that `live_upload` sends."""
    return {name: hashlib.shake_256(f"{name}{seed}".encode()).digest(size) for name, size in (("f", 5500), ("g", 900))}


def declaration() -> Declaration:
    """Returns what `live_upload` declares."""
    files = tuple(DeclaredFile(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in contents().items())
    return Declaration(upload_id="u", files=files, config={}, tensors=())


def live_upload(folder: Path, recorder: Recorder) -> None:
    """A client sends two files in chunks, asks now and then how far it is, and commits."""
    upload = Uploads(folder, _ROOMY).start(declaration())
    recorder.acknowledge("started")
    for name, data in contents().items():
        for number, begin in enumerate(range(0, len(data), _CHUNK)):
            chunk = data[begin : begin + _CHUNK]
            upload.append(name, begin, chunk, google_crc32c.value(chunk))
            if number % 2:
                told = {file.path: file.received for file in upload.progress()}
                recorder.acknowledge(f"received {msgspec.json.encode(told).decode()}")
    upload.commit(lambda _: None)
    recorder.acknowledge("committed")


def check_upload(folder: Path, acknowledged: tuple[str, ...]) -> None:
    """Opens uploads after a crash, finishes the upload as a client does, and compares every byte.

    Raises:
        AssertionError: acknowledged bytes are lost, or other bytes are there.
    """
    uploads = Uploads(folder, _ROOMY)
    if "started" in acknowledged:
        uploads.get("u")
    upload = uploads.start(declaration())
    told = {file.path: file.received for file in upload.progress()}
    for what in acknowledged:
        if what.startswith("received "):
            for name, received in msgspec.json.decode(what.partition(" ")[2], type=dict[str, int]).items():
                assert told[name] >= received, f"{name} has {told[name]} bytes; {received} were acknowledged"
    if "committed" in acknowledged:
        assert uploads.committed("u") is upload
    for name, data in contents().items():
        if told[name] < len(data):
            rest = data[told[name] :]
            upload.append(name, told[name], rest, google_crc32c.value(rest))
    try:
        upload.commit(lambda _: None)
    except PreconditionError as error:
        raise AssertionError(f"the upload cannot be finished: {error}") from error
    for name, data in contents().items():
        assert (folder / "u" / "files" / name).read_bytes() == data, f"{name} has other bytes"
