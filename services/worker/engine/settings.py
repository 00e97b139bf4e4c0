"""Settings of the engine process, resolved by the front and handed over when it is spawned."""

from __future__ import annotations

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine serves, and within which budgets. Bytes are bytes of device memory unless said otherwise."""

    base_folder: str  # folder of the base checkpoint: config.json and safetensors
    fingerprint_cache: str = ""  # folder that remembers the base's fingerprint; empty: hash the base at every start
    device: str = "cpu"
    tensor_parallel: int = 1  # ranks, each on a device of its own; bytes are of each
    dtype: str = "float32"  # float32, bfloat16 or float16
    kv_bytes: int = 256 << 20
    block_size: int = 16  # tokens in a KV block
    delta_bytes: int = 1 << 30  # packed deltas, loading ones included
    decoded_bytes: int = 1 << 30  # merged weights (W_b + Δ̂) of hot deltas; 0 keeps all packed
    max_running: int = 64  # sequences in a step
    max_step_tokens: int = 512  # rows in a step, decode and prefill together
    max_deltas: int = 16  # distinct deltas in a step
    max_context: int = 0  # tokens, prompt and output together; 0: the base config's
    max_wait_seconds: float = 2.0  # how long requests of resident deltas may pass one that waits for its turn
    prefix_cache: bool = True  # whether what prompts of one model begin with is computed once
    step_seconds: float = 0.2  # what distinct deltas may stretch a step to (or to twice its length without); 0: any
    threads: int = 0  # of torch on the CPU; 0: half of the CPUs, as waiting for a thread that others keep from running
    # costs a step many times its length (measured: 20 x), and front, router and loader need CPUs too
    log_level: str = "info"
    log_format: str = "auto"
