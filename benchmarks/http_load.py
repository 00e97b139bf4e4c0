"""Load on the OpenAI-compatible API by a tool of others, aiperf or guidellm, over the example models.

Starts the whole system on local files, publishes three fine-tunes, and runs the tool against base and fine-tunes. The
tools need packages that differ from ours, so each lives in an environment of its own:

    python3 -m venv /tmp/aiperf && /tmp/aiperf/bin/pip install aiperf==0.13.0
    .venv/bin/python -m benchmarks.http_load --tool aiperf --executable /tmp/aiperf/bin/aiperf
    python3 -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm==0.8.1
    .venv/bin/python -m benchmarks.http_load --tool guidellm --executable /tmp/guidellm/bin/guidellm
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.hardware import describe
from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient

MODELS = Path(__file__).parents[1] / "examples" / "models"
TUNES = ("conj_fr", "g2p", "section")


def aiperf(url: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Returns aiperf's flags: streams of completions, over base and fine-tunes in turn."""
    return [
        "profile", "--url", url, "--model", ",".join(("base", *TUNES)), "--model-selection-strategy", "round_robin",
        "--endpoint-type", "completions", "--streaming", "--tokenizer", str(MODELS / "base"),
        "--concurrency", str(arguments.streams), "--request-count", str(arguments.requests),
        "--synthetic-input-tokens-mean", str(arguments.prompt), "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(arguments.output), "--extra-inputs", "ignore_eos:true", "--use-legacy-max-tokens",
        "--use-server-token-count", "--artifact-dir", str(folder), "--ui", "none",
    ]  # fmt: skip


def guidellm(url: str, arguments: argparse.Namespace, folder: Path) -> list[str]:  # noqa: ARG001 - as aiperf
    """Returns guidellm's flags; it asks one model, here a fine-tune."""
    return [
        "run", "--backend", f"kind=openai_http,target={url},model=conj_fr,request_format=/v1/completions",
        "--profile", f"kind=concurrent,streams={arguments.streams}",
        "--constraint", f"kind=max_requests,count={arguments.requests}",
        "--tokenizer", f"kind=hf_auto,model={MODELS / 'base'}",
        "--data", f"kind=synthetic_text,prompt_tokens={arguments.prompt},output_tokens={arguments.output}",
        "--output", "kind=console", "--disable-console-interactive",
    ]  # fmt: skip


TOOLS = {"aiperf": aiperf, "guidellm": guidellm}


async def run(arguments: argparse.Namespace) -> int:
    """Runs the tool; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = StackOptions(
            base=MODELS / "base", home=home, store=str(home / "store"), listen="127.0.0.1:0",
            http_listen="127.0.0.1:0", threads=1,
        )  # fmt: skip
        async with Stack(options) as stack, AsyncClient(stack.address) as client:
            for name in TUNES:
                job = await client.create_job(name, await client.upload(MODELS / name), calibration_samples=16)
                await client.wait_for_job(job.job_id)
            flags = TOOLS[arguments.tool](f"http://{stack.http_address}", arguments, home / "artifacts")
            environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}
            process = await asyncio.create_subprocess_exec(arguments.executable, *flags, env=environment)
            return await process.wait()


def main() -> None:
    """Reads the arguments, runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=sorted(TOOLS), default="aiperf")
    parser.add_argument("--executable", required=True, help="the tool's command")
    parser.add_argument("--streams", type=int, default=8, help="requests at a time")
    parser.add_argument("--requests", type=int, default=64, help="requests in all")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=32, help="tokens of an answer")
    arguments = parser.parse_args()
    print(f"# {describe()}", flush=True)
    raise SystemExit(asyncio.run(run(arguments)))


if __name__ == "__main__":
    main()
