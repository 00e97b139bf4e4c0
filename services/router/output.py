"""What a client has of a stream: enough for another worker to go on where a lost one stopped."""

from __future__ import annotations

from array import array

from deltaserve.v1.inference_pb2 import FinishReason, GenerateResponse, TokenIds


class Output:
    """Records the frames of a stream, over all workers that ever make it.

    Workers turn the same tokens into the same text, so the tokens are all that must be known.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, array[int]] = {}  # by choice; four bytes a token
        self.reasons: dict[int, FinishReason.ValueType] = {}  # of choices that have ended

    @property
    def tokens(self) -> int:
        """Output tokens, over all choices."""
        return sum(map(len, self._tokens.values()))

    @property
    def started(self) -> bool:
        """Whether there is any output."""
        return bool(self._tokens or self.reasons)

    def admit(self, frame: GenerateResponse) -> bool:
        """Records a frame; returns whether the client is to see it.

        A worker that goes on with a stream tells again how it prepares, and which choices had ended.
        """
        kind = frame.WhichOneof("frame")
        if kind == "chunk":
            self._tokens.setdefault(frame.chunk.index, array("I")).extend(frame.chunk.token_ids)
        elif kind == "progress":
            return not self.started
        elif kind == "finished":
            if frame.finished.index in self.reasons:
                return False
            self.reasons[frame.finished.index] = frame.finished.reason
        return True

    def resume(self) -> list[TokenIds]:
        """Returns the tokens by choice, for Submit.resume; empty when there is nothing to go on from."""
        last = max((*self._tokens, *self.reasons), default=-1)
        return [TokenIds(ids=self._tokens.get(index, ())) for index in range(last + 1)]
