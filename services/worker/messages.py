"""What the worker's front process and its engine process say to each other: msgpack over one socket pair.

The front owns everything with I/O (gRPC, store, disk cache, tokenizers, text); the engine owns everything with
tensors. A message holds ids and numbers only, never text (but grammars and what they need of a tokenizer), and one
`Step` message carries all outputs of a step.
"""

from __future__ import annotations

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved sampling parameters; ranges are checked by the front. Semantics: SamplingParams in inference.proto."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: list[int] = []  # end-of-sequence tokens included unless ignore_eos
    top_logprobs: int | None = None
    raw_logits: bool = False


class Add(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """One choice of a request. Output begins after prompt + resume.

    Tokens of `resume` count as generated: for max_tokens, min_tokens, penalties and the positions of the seed.
    """

    sequence: int  # unique while the engine lives
    revision: str  # "" for the base
    prompt: list[int]
    resume: list[int] = []
    sampling: Sampling
    priority: int = 0
    deadline: float | None = None  # time.monotonic() of this machine, seconds
    prefill_deadline: float | None = None  # max_queue_wait, the same clock
    grammar: str = ""  # llguidance's JSON form of what the output must look like
    vocabulary: str = ""  # key of the Vocabulary that the grammar is applied over; it was sent before


class Vocabulary(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What grammars need to know of a tokenizer; sent before the first Add that names it.

    Without `tokenizer`: forget it. Sequences that use it keep it.
    """

    key: str
    tokenizer: bytes = b""  # its tokenizer.json
    size: int = 0  # token ids
    eos: list[int] = []


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Forget a sequence and free its memory before the next step; nothing is answered. Unknown ones are ignored."""

    sequence: int


class Pause(msgspec.Struct, tag=True, frozen=True):
    """Hold a sequence back (its memory stays), or let it go on."""

    sequence: int
    paused: bool


class Load(msgspec.Struct, tag=True, frozen=True):
    """A delta's verified files are in `folder` on local disk: bring it to memory. Answered by DeltaChanged."""

    revision: str
    folder: str
    pinned: bool = False


class Drop(msgspec.Struct, tag=True, frozen=True):
    """Let go of a delta once it is idle. Answered by DeltaChanged."""

    revision: str


class Rank(msgspec.Struct, tag=True, frozen=True):
    """What keeping deltas in memory is worth; idle ones of little worth are evicted first. Holds for half a minute."""

    worths: dict[str, float]


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Leave the loop and exit with status 0."""


ToEngine = Add | Vocabulary | Abort | Pause | Load | Drop | Rank | Shutdown


class Ready(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """First message of the engine: the base is loaded and warmed up."""

    context_length: int
    vocab_size: int
    kv_blocks: int
    block_size: int
    delta_bytes_budget: int
    device: str
    base_fingerprint: str  # of deltaserve.delta.fingerprint


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs of one token: the chosen value, and the most probable tokens with theirs, best first."""

    chosen: float
    top_ids: list[int]
    top_values: list[float]


class Output(msgspec.Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """What a step made for one sequence."""

    sequence: int
    tokens: list[int] = []  # a matched stop token is the last of them
    logprobs: list[Logprobs] = []  # one a token when asked for
    finish: str = ""  # "", "stop", "length", "deadline" or "error"
    stop_token: int | None = None
    error: str = ""
    prefill_started: bool = False  # the first step that computes this sequence


class Step(msgspec.Struct, tag=True, frozen=True):
    """All outputs of one step."""

    outputs: list[Output]
    began: float = 0.0  # time.monotonic() of this machine, seconds; 0: not told


class DeltaChanged(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A delta came, went, or could not be loaded."""

    revision: str
    state: str  # "resident", "decoded" (also resident), "dropped", "failed"
    bytes: int = 0
    load_seconds: float = 0.0
    error: str = ""  # with "failed": the message of the error
    error_code: str = ""  # reason constant of deltaserve.errors


class Wanted(msgspec.Struct, tag=True, frozen=True):
    """Sequences wait for a delta that is not in memory (it was evicted): answer with Load."""

    revision: str


class DeltaUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one delta, in Stats."""

    revision: str
    bytes: int
    in_use: int
    decoded: bool


class Totals(msgspec.Struct, kw_only=True):
    """Counts since the engine started."""

    steps: int = 0  # that computed something
    prefill_tokens: int = 0  # rows of prompts
    decode_tokens: int = 0  # rows that follow a generated token
    delta_groups: int = 0  # distinct deltas, added up over steps
    delta_rows: int = 0  # rows that a delta was applied to
    preempted: int = 0  # sequences that lost their KV blocks to others
    gave_way: int = 0  # turns that a delta gave up for one that starved
    evicted: int = 0  # deltas that left memory


class Stats(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """How the engine is; sent at most four times a second while it changes, and when it goes idle."""

    running: int
    waiting: int
    kv_blocks_free: int
    delta_bytes_used: int
    step_seconds: float
    prefix_token_seconds: float = 0.0  # what a prompt token found in the prefix cache saves; 0: unknown, or no cache
    deltas: list[DeltaUse]
    totals: Totals = msgspec.field(default_factory=Totals)


FromEngine = Ready | Step | DeltaChanged | Wanted | Stats
