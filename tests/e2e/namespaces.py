# ruff: noqa: T201 - its output is what the test reads
"""Two routers, two compressors, two workers and an S3 server, each on a host of its own: a network namespace.

Run by test_namespaces.py in a network namespace of its own, which holds the bridge between the hosts: nothing of the
machine's own network is touched. Links are cut and healed as cables are.
"""

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from deltaserve.client import AsyncClient
from deltaserve.errors import DeltaServeError
from deltaserve.v1 import admin_pb2, models_pb2

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"
HOSTS = ("s3", "compressor1", "compressor2", "worker1", "worker2", "router1", "router2")
_SUBNET = "10.231.0"
_START_SECONDS = 240.0


class Network:
    """A bridge in this namespace and hosts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = f"ds{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        _ip("link", "add", "bridge0", "type", "bridge")
        _ip("address", "add", f"{_SUBNET}.1/24", "dev", "bridge0")
        _ip("link", "set", "bridge0", "up")
        _ip("link", "set", "lo", "up")
        for number, host in enumerate(HOSTS):
            self._add(host, number)

    def _add(self, host: str, number: int) -> None:
        space, link = f"{self._prefix}-{host}", f"link{number}"
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", "bridge0")
        _ip("link", "set", link, "up")
        _ip("-n", space, "address", "add", f"{self.ip(host)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def ip(self, host: str) -> str:
        return f"{_SUBNET}.{10 + HOSTS.index(host)}"

    def start(self, host: str, *words: str) -> None:
        """Starts a process on a host; its log is `<folder>/<host>.log`."""
        with (self.folder / f"{host}.log").open("wb") as log:
            command = ["ip", "netns", "exec", f"{self._prefix}-{host}", sys.executable, "-m", *words]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def cut(self, host: str) -> None:
        print(f"cut {host} off", flush=True)
        _ip("link", "set", f"link{HOSTS.index(host)}", "down")

    def heal(self, host: str) -> None:
        print(f"{host} is back", flush=True)
        _ip("link", "set", f"link{HOSTS.index(host)}", "up")

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for host in HOSTS:
            _ip("netns", "delete", f"{self._prefix}-{host}", check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check)


def _start_all(network: Network, folder: Path) -> None:
    endpoint = f"http://{network.ip('s3')}:5000"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    network.start("s3", "moto.server", "-H", "0.0.0.0", "-p", "5000")
    _make_bucket(f"{endpoint}/shared")
    shared = ("--store", "s3://shared/deltas", "--base", str(MODELS / "base"), "--threads", "1")
    for number in ("1", "2"):
        network.start(
            f"compressor{number}", "services.compressor", *shared, "--listen", "0.0.0.0:50053",
            "--work", str(folder / f"compressor{number}"), "--lease-seconds", "6", "--poll-seconds", "1",
            "--source-folders", str(MODELS),
        )  # fmt: skip
        network.start(
            f"worker{number}", "services.worker", *shared, "--listen", "0.0.0.0:50052", "--name", f"worker{number}",
            "--cache", str(folder / f"worker{number}"),
        )  # fmt: skip
        network.start(
            f"router{number}", "services.router", "--store", "s3://shared/deltas", "--listen", "0.0.0.0:50051",
            "--workers", f"{network.ip('worker1')}:50052,{network.ip('worker2')}:50052",
            "--compressor", f"{network.ip(f'compressor{number}')}:50053", "--name", f"router{number}",
        )  # fmt: skip


def _make_bucket(url: str) -> None:
    for attempt in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if attempt == 299:
                raise
            subprocess.run(["sleep", "0.2"], check=True)


async def _until_serving(clients: Sequence[AsyncClient], workers: int) -> None:
    async with asyncio.timeout(_START_SECONDS):
        for client in clients:
            while True:
                try:
                    states = [worker.state for worker in await client.workers()]
                    await client.jobs(limit=1)
                except DeltaServeError:
                    states = []
                if states.count(admin_pb2.WORKER_STATE_SERVING) == workers:
                    break
                await asyncio.sleep(0.3)


async def _publish(client: AsyncClient, model: str, source: Path) -> models_pb2.Job:
    job = await client.create_job(model, await client.upload(source), calibration_samples=4)
    job = await client.wait_for_job(job.job_id)
    assert job.state == models_pb2.JOB_STATE_SUCCEEDED, job
    return job


async def _answers(client: AsyncClient, model: str, count: int = 1) -> list[list[int]]:
    done = [
        await client.complete(model, "<|task|>go", temperature=0, max_tokens=6, ignore_eos=True) for _ in range(count)
    ]
    return [d.token_ids[0] for d in done]


async def _share_a_store(one: AsyncClient, two: AsyncClient) -> None:
    """What goes in by one router and compressor is served by the other; one name, two compressors: two revisions."""
    jobs = await asyncio.gather(_publish(one, "same", MODELS / "g2p"), _publish(two, "same", MODELS / "section"))
    assert sorted(job.revision_name.rsplit("/", 1)[-1] for job in jobs) == ["1", "2"]
    for job in jobs:
        name = "same@" + job.revision_name.rsplit("/", 1)[-1]
        assert await _answers(one, name) == await _answers(two, name)
    print("one name, two compressors at once: two revisions, the same by both routers", flush=True)


async def _lose_a_worker(network: Network, clients: Sequence[AsyncClient]) -> None:
    before = await _answers(clients[0], "same@1")
    network.cut("worker1")
    asked = [_answers(client, model, 5) for client in clients for model in ("base", "same@1", "same@2")]
    found = await asyncio.gather(*asked)
    assert found[1] == before * 5
    assert found[:3] == found[3:]
    print(f"{5 * len(asked)} requests by two routers answered while a worker was away", flush=True)
    network.heal("worker1")
    await _until_serving(clients, 2)


async def _lose_the_store(network: Network, clients: Sequence[AsyncClient]) -> None:
    before = await _answers(clients[0], "same@1")
    network.cut("s3")
    for client in clients:
        assert await _answers(client, "same@1", 5) == before * 5
    print("10 requests for a resident model answered while the store was away", flush=True)
    network.heal("s3")


async def _lose_a_compressor(network: Network, one: AsyncClient, two: AsyncClient) -> None:
    """Its job goes on elsewhere; when it is back, it does not publish what it still has."""
    job = await one.create_job("moved", str(MODELS / "conj_fr"), calibration_samples=64, codec="int4")
    async with asyncio.timeout(120):
        while (await one.job(job.job_id)).progress.layers_done < 1:
            await asyncio.sleep(0.05)
    owner = _owner(network.folder, job.job_id)
    network.cut(owner)
    other = two if owner == "compressor1" else one
    done = await other.wait_for_job(job.job_id)
    assert done.state == models_pb2.JOB_STATE_SUCCEEDED, done
    assert done.attempts == 2
    network.heal(owner)
    await _until_serving((one, two), 2)
    await asyncio.sleep(10)  # longer than a lease: what the other would still do, it has done
    (model,) = [m for m in await other.models() if m.model == "moved"]
    assert list(model.revisions) == ["1"], model
    assert await _answers(one, "moved") == await _answers(two, "moved")
    print("a compression whose compressor was cut off was ended by another, and published once", flush=True)


def _owner(folder: Path, job_id: str) -> str:
    """Returns the compressor that runs a job."""
    hosts = ("compressor1", "compressor2")
    return next(host for host in hosts if f"job {job_id}: started" in (folder / f"{host}.log").read_text())


async def _main(folder: Path) -> None:
    network = Network(folder)
    try:
        _start_all(network, folder)
        one, two = (AsyncClient(f"{network.ip(host)}:50051", timeout=60) for host in ("router1", "router2"))
        async with one, two:
            await _until_serving((one, two), 2)
            await _share_a_store(one, two)
            await _lose_a_worker(network, (one, two))
            await _lose_the_store(network, (one, two))
            await _lose_a_compressor(network, one, two)
    except BaseException:
        for host in HOSTS:
            print(f"--- {host}", *(folder / f"{host}.log").read_text().splitlines()[-15:], sep="\n", flush=True)
        raise
    finally:
        network.end()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
