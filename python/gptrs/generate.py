"""Tokens after a prompt: greedy or sampled, one sequence or many of different lengths, whole or as they come.

    prompts ─▶ decoding: passes of the model ─▶ new ids ─▶ what ends a sequence ─▶ ids, text, log-probabilities

`generate` and `stream` give ids; `complete` and `stream_tokens` all there is to know of them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Required, TypedDict, Unpack

from gptrs.decoding import Decided, Decoder
from gptrs.model import Transformer
from gptrs.sampling import Sampling, draw, probabilities

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

__all__ = ["Completion", "Settings", "Token", "complete", "draw", "generate", "probabilities", "stream",
           "stream_tokens"]  # fmt: skip

Reason = Literal["length", "stop_token", "stop_string"]


class Settings(TypedDict, total=False):
    """How to go on from a prompt. All but `max_new_tokens` may be left out.

    temperature: 0 always takes the likeliest token; otherwise the logits are divided by it. Default 1.
    top_k: keep this many of the likeliest tokens. top_p: then keep the smallest set of the likeliest tokens whose
        probability reaches this. min_p: and of these no token that is less likely than so many times the likeliest.
        Default None for each: keep every token.
    repetition_penalty: above 1, ids of the prompt and of what was generated become less likely, before the
        temperature. Default 1: no penalty.
    stop_tokens: ids that end a sequence. Default none.
    stop_strings: texts that end a sequence as soon as its new text contains one, wherever tokens begin and end; they
        need a tokenizer. Default none.
    tokenizer: gives `Completion.text` and `Token.text`. Default None: ids alone.
    logprobs: 0 asks for each token's log-probability, n for those of the n likeliest tokens as well. They are the
        model's own, before penalty, temperature, top-k, top-p and min-p. Default None: none.
    seed: the same seed draws the same tokens; None, the default, draws fresh ones.
    use_cache: False recomputes every position for every token, to check the cache against. Default True.
    prefill_chunk: positions of the prompts that are read at a time; bounds the memory of long ones. Default None: all.
    n_drafts: tokens that the model's further-token modules guess before each pass, which judges them; the output is
        that of the model alone, greedy or sampled. Where the two likeliest logits differ by no more than rounding,
        a pass of several positions may choose otherwise than a pass of one, as batches of other sizes do.
        With a temperature above 0 other tokens are drawn, of the same distribution. Default 0.
    is_compiled: compile the pass over new tokens, once for each model, batch and size of the cache, a power of two.
        Default False.
    """

    max_new_tokens: Required[int]
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    stop_tokens: Collection[int]
    stop_strings: Sequence[str]
    tokenizer: "Tokenizer | None"
    logprobs: int | None
    seed: int | None
    use_cache: bool
    prefill_chunk: int | None
    n_drafts: int
    is_compiled: bool


class Token(NamedTuple):
    """One new token.

    Attributes: text: what it adds to the text, as far as that is certain: whole characters, and nothing that may still
        become a stop string; the last token brings the rest. "" without a tokenizer. logprob, likeliest: as
        `Settings.logprobs` asks; likeliest holds (id, log-probability), falling. n_drafted, n_accepted: drafts so far.
    """

    id: int
    text: str
    logprob: float | None
    likeliest: list[tuple[int, float]]
    n_drafted: int
    n_accepted: int


@dataclass(kw_only=True, slots=True)
class Completion:
    """What followed a prompt.

    Attributes: ids: a stop token that ended the sequence, or the one that completed a stop string, is the last; text:
        the same as text, without the stop token, up to the stop string; ids that have no token add nothing; None
        without a tokenizer; logprobs, likeliest:
        for each id, as in `Token`; ended_by: what ended it; n_drafted, n_accepted: drafts, and those that held.
    """

    ids: list[int] = field(default_factory=list)
    text: str | None = None
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    ended_by: Reason = "length"
    n_drafted: int = 0
    n_accepted: int = 0


def generate(model: Transformer, prompts: Sequence[Sequence[int]], **settings: Unpack[Settings]) -> list[list[int]]:
    """The new ids of each prompt, without the prompt; a stop token that ended a sequence is its last id.

    Raises: ValueError, before any work, for an empty prompt, an id outside the vocabulary, a setting out of range, or
        a prompt that with its new tokens would not fit the learned positions; TypeError for a setting of another type.
    """
    return [completion.ids for completion in complete(model, prompts, **settings)]


def complete(model: Transformer, prompts: Sequence[Sequence[int]], **settings: Unpack[Settings]) -> list[Completion]:
    """As `generate`, with text, log-probabilities, reasons and acceptance of drafts.

    Raises: as `generate`.
    """
    sampling = _checked(model, prompts, settings)
    sequences = [_Sequence(sampling) for _ in prompts]
    if prompts:
        for decided in Decoder(model, prompts, sampling).rounds():
            for sequence, found in zip(sequences, decided, strict=True):
                sequence.take(found)
            if all(sequence.is_ended for sequence in sequences):
                break
    return [sequence.completion for sequence in sequences]


def stream(model: Transformer, prompt: Sequence[int], **settings: Unpack[Settings]) -> Iterator[int]:
    """Yields the ids that `generate` returns for this one prompt, each as soon as it is known.

    The arguments are checked by the call itself, not at the first id. Between two ids the model is in the caller's
    mode, and gradients are the caller's matter.
    """
    return (token.id for token in stream_tokens(model, prompt, **settings))


def stream_tokens(model: Transformer, prompt: Sequence[int], **settings: Unpack[Settings]) -> Iterator[Token]:
    """As `stream`, with text, log-probabilities and acceptance of drafts; the texts join to `Completion.text`."""
    sampling = _checked(model, [prompt], settings)
    return _tokens(Decoder(model, [prompt], sampling), _Sequence(sampling))


def _tokens(decoder: Decoder, sequence: "_Sequence") -> Iterator[Token]:
    for (decided,) in decoder.rounds():
        yield from sequence.take(decided)
        if sequence.is_ended:
            return


class _Sequence:
    """One sequence as it grows: takes what passes decided up to what ends it."""

    def __init__(self, sampling: Sampling) -> None:
        self.is_ended = False
        self.completion = Completion()
        self._max_new_tokens = sampling.max_new_tokens
        self._stop_tokens = frozenset(sampling.stop_tokens)
        self._text = None if sampling.tokenizer is None else _Text(sampling.tokenizer, sampling.stop_strings)

    def take(self, decided: Decided) -> list[Token]:
        """The tokens that this adds; none once the sequence has ended."""
        if self.is_ended:
            return []
        whole = self.completion
        whole.n_drafted += decided.n_drafted
        whole.n_accepted += decided.n_accepted
        tokens = []
        for place, token_id in enumerate(decided.ids):
            whole.ids.append(token_id)
            logprob = decided.logprobs[place] if decided.logprobs else None
            likeliest = decided.likeliest[place] if decided.likeliest else []
            if logprob is not None:
                whole.logprobs.append(logprob)
                whole.likeliest.append(likeliest)
            text = self._advanced(token_id)
            tokens.append(Token(token_id, text, logprob, likeliest, whole.n_drafted, whole.n_accepted))
            if self.is_ended:
                break
        return tokens

    def _advanced(self, token_id: int) -> str:
        """The text that is certain with this id, and whether the sequence ends with it."""
        is_stop = token_id in self._stop_tokens
        text = "" if self._text is None or is_stop else self._text.push(token_id)
        is_stopped = self._text is not None and self._text.is_stopped
        self.is_ended = is_stop or is_stopped or len(self.completion.ids) == self._max_new_tokens
        if self._text is None:
            self.completion.ended_by = "stop_token" if is_stop else "length"
            return text
        if self.is_ended and not is_stopped:
            text += self._text.finish()
        # The last characters, broken ones, may complete a stop string too.
        self.completion.ended_by = "stop_token" if is_stop else "stop_string" if self._text.is_stopped else "length"
        self.completion.text = (self.completion.text or "") + text
        return text


class _Text:
    """The text of ids that come one at a time, up to the first stop string.

    An id without a token, as models of more ids than their tokenizer have some, adds nothing.

    Attributes: is_stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: "Tokenizer", stop_strings: Sequence[str]) -> None:
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._stop_strings = stop_strings
        self._held = ""  # the end of the text so far, where it may be the beginning of a stop string

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        added = "" if self._tokenizer.id_to_token(token_id) is None else self._decoder.push(token_id)
        text = self._cut(self._held + added)
        n_held = 0 if self.is_stopped else max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """The rest, when no id follows."""
        return self._cut(self._held + self._decoder.finish())

    def _cut(self, text: str) -> str:
        """The text up to its first stop string."""
        places = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        self.is_stopped = bool(places)
        return text[: min(places)] if places else text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop string, without being all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _checked(model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings) -> Sampling:
    """The settings with their defaults, when they and the prompts fit the model."""
    sampling, config = Sampling(**settings), model.config
    max_new_tokens = sampling.max_new_tokens
    if sampling.n_drafts and config.n_mtp_layers == 0:
        raise ValueError(
            f"n_drafts ({sampling.n_drafts}) needs a model with further-token modules, got n_mtp_layers=0; "
            "hint: leave it out, or train with model.n_mtp_layers=1"
        )
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} has no tokens; hint: start from the end-of-text token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            got = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(f"prompt {row}: expected ids below vocab_size ({config.vocab_size}), got {got}")
        limit = config.position_limit
        if limit is not None and len(prompt) + max_new_tokens > limit:
            n_over = len(prompt) + max_new_tokens - limit
            fits_shorter, fits_fewer = n_over < len(prompt), n_over < max_new_tokens
            hint = f"shorten the prompt or lower max_new_tokens by {n_over}"
            if fits_shorter != fits_fewer:
                hint = (
                    f"shorten the prompt by {n_over} tokens or more"
                    if fits_shorter
                    else f"lower max_new_tokens by {n_over}"
                )
            elif not fits_shorter:
                hint = f"shorten the prompt and lower max_new_tokens, by {n_over} in all"
            raise ValueError(
                f"prompt {row} of {len(prompt)} tokens and {max_new_tokens} new ones exceed the {limit} learned "
                f"positions; hint: {hint}"
            )
    return sampling
