"""The lossless stage: entropy-coded streams in place of planes on disk. docs/delta-format.md has the byte layout."""

from deltaserve.delta.lossless.planes import unwrap, wrap
from deltaserve.delta.lossless.stream import BLOCK_BYTES, decode, encode, estimate

__all__ = ["BLOCK_BYTES", "decode", "encode", "estimate", "unwrap", "wrap"]
