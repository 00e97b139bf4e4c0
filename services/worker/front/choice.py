"""One choice of a request: the engine's tokens in, frames out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.detokenize import Detokenizer
from services.worker.front.stopping import StopMatcher
from services.worker.front.validation import Stopping
from services.worker.messages import Logprobs, Output

_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class Choice:
    """Turns output into text and finds stop strings.

    Attributes:
        index: number of the choice, from 0.
        tokens: tokens generated, resumed ones included.
        fresh_tokens: tokens generated here.
        finished: whether the choice is complete.
        first_token_at, last_token_at: times of the first and last of fresh_tokens.
        longest_gap: longest time between two outputs, in seconds.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stopping: Stopping,
        bytes_of: Callable[[int], bytes] | None = None,
    ) -> None:
        """Begins at the prompt's end; `bytes_of` returns a token's bytes where logprobs are to tell them."""
        self.index = index
        self.tokens = 0
        self.fresh_tokens = 0
        self.finished = False
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.longest_gap = 0.0
        self._detokenizer = detokenizer
        self._stopping = stopping
        self._bytes_of = bytes_of
        self._matcher = StopMatcher(stopping.strings, stopping.include)

    def resume(self, tokens: Sequence[int], max_tokens: int) -> list[pb.GenerateResponse]:
        """Takes tokens that the client has; returns a Finished frame if they complete the choice already."""
        for token in tokens:
            if token in self._stopping.token_ids and self.tokens >= self._stopping.min_tokens:
                return [self._finish(pb.FINISH_REASON_STOP, token=token)]
            _, stop = self._take(token)
            if stop is not None:
                return [self._finish(pb.FINISH_REASON_STOP, stop=stop)]
        return [self._finish(pb.FINISH_REASON_LENGTH)] if self.tokens >= max_tokens else []

    def take(self, output: Output, now: float) -> list[pb.GenerateResponse]:
        """Takes a step's output; returns a Chunk when there are tokens, and Finished at the end."""
        if self.finished:
            return []
        if output.tokens:
            self.first_token_at = now if self.first_token_at is None else self.first_token_at
            self.longest_gap = max(self.longest_gap, now - (self.last_token_at or now))
            self.last_token_at = now
        text, taken, stop = self._text(output)
        self.fresh_tokens += taken
        frames = []
        if taken or text:
            chunk = pb.Chunk(index=self.index, text=text, token_ids=output.tokens[:taken])
            pairs = zip(output.tokens[:taken], output.logprobs, strict=False)  # logprobs may not have been asked for
            chunk.logprobs.extend(self._logprobs(token, logprobs) for token, logprobs in pairs)
            frames.append(pb.GenerateResponse(chunk=chunk))
        if stop is not None:
            frames.append(self._finish(pb.FINISH_REASON_STOP, stop=stop))
        elif output.finish:
            frames.append(self._finish(_REASONS[output.finish], token=output.stop_token))
        return frames

    def _text(self, output: Output) -> tuple[str, int, str | None]:
        """Returns the text that may be shown, how many tokens count, and the stop string that matched."""
        text = ""
        for position, token in enumerate(output.tokens):
            if token == output.stop_token and position == len(output.tokens) - 1 and not self._stopping.include:
                self.tokens += 1
                break
            shown, stop = self._take(token)
            text += shown
            if stop is not None:
                return text, position + 1, stop
        if output.finish:
            shown, stop = self._matcher.push(self._detokenizer.flush())
            return text + shown + self._matcher.flush(), len(output.tokens), stop
        return text, len(output.tokens), None

    def _take(self, token: int) -> tuple[str, str | None]:
        self.tokens += 1
        text = self._detokenizer.push(token)
        if self.tokens <= self._stopping.min_tokens:
            return text, None
        return self._matcher.push(text)

    def _finish(
        self, reason: pb.FinishReason.ValueType, *, stop: str = "", token: int | None = None
    ) -> pb.GenerateResponse:
        self.finished = True
        return pb.GenerateResponse(
            finished=pb.Finished(index=self.index, reason=reason, stop_string=stop, stop_token_id=token)
        )

    def _logprobs(self, token: int, logprobs: Logprobs) -> pb.TokenLogprobs:
        top = zip(logprobs.top_ids, logprobs.top_values, strict=True)
        return pb.TokenLogprobs(
            chosen=self._logprob(token, logprobs.chosen), top=[self._logprob(number, value) for number, value in top]
        )

    def _logprob(self, token: int, value: float) -> pb.Logprob:
        told = b"" if self._bytes_of is None else self._bytes_of(token)
        return pb.Logprob(token_id=token, value=value, token_bytes=told)
