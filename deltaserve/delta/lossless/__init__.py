"""The lossless stage: entropy-coded streams in place of planes on disk. docs/delta-format.md has the byte layout."""

from deltaserve.delta.lossless.planes import unwrap, wrap
from deltaserve.delta.lossless.stream import decode, encode, estimate

__all__ = ["decode", "encode", "estimate", "unwrap", "wrap"]
