"""What generation says of its tokens and how it can be told to go on: penalty, stop strings, log-probabilities,
prompts in chunks, compiled steps."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import gptrs
from gptrs.generate import complete, generate, stream_tokens
from gptrs.model import ModelConfig, Transformer, new_cache
from gptrs.sampling import log_probabilities, penalized
from models import sharp

SIZES = {"vocab_size": 37, "max_seq_len": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "inter_dim": 64}
CONFIGS = {
    "learned": ModelConfig(**SIZES),
    "grouped": ModelConfig(**SIZES, position="rope", n_kv_heads=2),
    "latent": ModelConfig.preset("deepseek-tiny", vocab_size=37, n_layers=2, dim=48, n_heads=2, moe_inter_dim=32),
}
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 14, 15]]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return sharp(CONFIGS[request.param])


def test_a_penalty_divides_what_is_above_zero_and_multiplies_what_is_below():
    logits, is_seen = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[True, True, False]])
    assert penalized(logits, is_seen, 2.0).tolist() == [[1.0, -2.0, 3.0]]
    assert penalized(logits, is_seen, 0.5).tolist() == [[4.0, -0.5, 3.0]]
    assert torch.equal(penalized(logits, is_seen, 1.0), logits)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3, 5.0])
def test_the_penalty_equals_the_one_of_transformers(penalty):
    theirs = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor(penalty=penalty)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (6, 30), generator=generator)
    logits = torch.randn(6, 50, generator=generator) * 5
    is_seen = torch.zeros(6, 50, dtype=torch.bool).scatter(1, ids, True)
    assert torch.equal(penalized(logits, is_seen, penalty), theirs(ids, logits.clone()))


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_a_penalty_beyond_the_numbers_of_the_logits_leaves_them_finite(penalty):
    logits, is_seen = torch.tensor([[2.0, -1.0, 3.0, 0.0]]), torch.tensor([[True, True, False, True]])
    found = penalized(logits, is_seen, penalty)
    assert found.isfinite().all()
    assert found[0, 2:].tolist() == [3.0, 0.0]
    model = Transformer(CONFIGS["learned"])
    (ids,) = generate(model, [[1]], max_new_tokens=6, repetition_penalty=penalty, seed=1)
    assert max(ids) < 37


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompt_and_new_ids_are_penalized_at_every_step(model, use_cache):
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(12):
            logits = model(torch.tensor([ids]))[0, -1]
            seen = torch.tensor(sorted(set(ids)))
            logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.4, logits[seen] / 1.4)
            ids.append(int(logits.argmax()))
        expected.append(ids[len(prompt) :])
    settings = {"max_new_tokens": 12, "temperature": 0, "use_cache": use_cache}
    found = generate(model, PROMPTS, repetition_penalty=1.4, **settings)
    assert found == expected != generate(model, PROMPTS, **settings)


def test_a_huge_penalty_repeats_no_id_while_a_new_one_has_a_logit_above_zero():
    model, n_free = sharp(CONFIGS["learned"]), 0
    found = generate(model, [[1, 2]], max_new_tokens=20, temperature=0, repetition_penalty=1e30)[0]
    for n in range(20):
        ids = [1, 2, *found[:n]]
        logits = model(torch.tensor([ids]))[0, -1]
        if logits[[i for i in range(37) if i not in ids]].max() > 0.01:
            n_free += 1
            assert found[n] not in ids
    assert n_free > 5


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_the_whole_forward_pass(model, temperature):
    """Neither temperature, top-k nor penalty is in them."""
    settings = {"temperature": temperature, "top_k": 9, "repetition_penalty": 1.2, "seed": 3, "logprobs": 4}
    for prompt, found in zip(PROMPTS, complete(model, PROMPTS, max_new_tokens=15, **settings), strict=True):
        assert len(found.logprobs) == len(found.likeliest) == 15
        whole = torch.tensor([[*prompt, *found.ids]])
        table = model(whole)[0, len(prompt) - 1 : -1].double().log_softmax(-1)  # (15, V)
        own = table.gather(1, whole[0, len(prompt) :, None]).squeeze(1)
        assert torch.tensor(found.logprobs).double().sub(own).abs().max() <= 1e-5
        for place, likeliest in zip(table, found.likeliest, strict=True):
            top = place.topk(4)
            assert [i for i, _ in likeliest] == top.indices.tolist()
            assert [p for _, p in likeliest] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_log_probabilities_can_be_asked_for_without_others():
    model = sharp(CONFIGS["learned"])
    (found,) = complete(model, [[1]], max_new_tokens=3, temperature=0, logprobs=0)
    assert len(found.logprobs) == 3 and found.likeliest == [[], [], []]
    (none,) = complete(model, [[1]], max_new_tokens=3, temperature=0)
    assert none.ids == found.ids and none.logprobs == none.likeliest == []
    (all_of_them,) = complete(model, [[1]], max_new_tokens=1, logprobs=1000)
    assert sum(math.exp(p) for _, p in all_of_them.likeliest[0]) == pytest.approx(1.0, abs=1e-5)


def test_half_precision_logits_have_log_probabilities_in_float32():
    logits = torch.tensor([[[1.0, 2.0]]], dtype=torch.bfloat16)
    own, _, _ = log_probabilities(logits, torch.tensor([[1]]), 0)
    assert own.item() == pytest.approx(-math.log(1 + math.exp(-1)), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 9, 100])
def test_a_prompt_read_in_chunks_goes_on_as_if_read_whole(model, chunk):
    settings = {"max_new_tokens": 12, "temperature": 0, "logprobs": 0}
    whole, chunked = complete(model, PROMPTS, **settings), complete(model, PROMPTS, prefill_chunk=chunk, **settings)
    for a, b in zip(whole, chunked, strict=True):
        assert a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_no_chunk_is_longer_than_asked_for():
    model, lengths = sharp(CONFIGS["learned"]), []
    model.embed.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    generate(model, PROMPTS, max_new_tokens=2, prefill_chunk=4)
    assert lengths == [4, 4, 1, 1]


# ── text ──


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One id for each byte, and "ab" as one more: id 256."""
    return gptrs.Tokenizer.train_from_iterator(["ab ab ab"], 257)


class Writes(Transformer):
    """A model that says some bytes after any prompt of one token, one a step."""

    def __init__(self, text: bytes, vocab_size: int = 257):
        super().__init__(ModelConfig(**SIZES | {"vocab_size": vocab_size, "max_seq_len": 128}))
        self.said = text

    def hidden(self, tokens, *, cache=None, positions=None, doc_ids=None):
        self.place = tokens.shape[1] if cache is None else self.__dict__.get("place", 0) + tokens.shape[1]
        if cache is not None:
            cache.advance(tokens.shape[1])
        return torch.zeros(1, tokens.shape[1], 32)

    def logits(self, hidden):
        out = torch.zeros(*hidden.shape[:-1], self.config.vocab_size)
        out[..., self.said[self.place - 1]] = 1.0
        return out


def written(text, tokenizer, **settings):
    """The completion of a model that writes these bytes; what streams must be the same."""
    settings = {"max_new_tokens": len(text), "temperature": 0, "tokenizer": tokenizer} | settings
    (whole,) = complete(Writes(text), [[0]], **settings)
    tokens = list(stream_tokens(Writes(text), [0], **settings))
    assert [token.id for token in tokens] == whole.ids
    assert "".join(token.text for token in tokens) == whole.text
    return whole, [token.text for token in tokens]


def test_a_stop_string_ends_the_sequence_and_the_text_before_it(bytes_tokenizer):
    whole, texts = written(b"one.\n\ntwo", bytes_tokenizer, stop_strings=["\n\n"])
    assert (whole.text, whole.ended_by) == ("one.", "stop_string")
    assert bytes(whole.ids) == b"one.\n\n"  # the id that completes the stop string is the last
    assert texts == ["o", "n", "e", ".", "", ""]  # a line feed could still become a stop string


def test_what_looked_like_a_stop_string_and_was_none_comes_later(bytes_tokenizer):
    whole, texts = written(b"aab aaac", bytes_tokenizer, stop_strings=["aaaa", "aaac", "zz"])
    assert (whole.text, whole.ended_by) == ("aab ", "stop_string")
    assert texts == ["", "", "aab", " ", "", "", "", ""]
    whole, texts = written(b"xaa", bytes_tokenizer, stop_strings=["aaa"])
    assert (whole.text, whole.ended_by, texts) == ("xaa", "length", ["x", "", "aa"])


def test_the_first_of_several_stop_strings_counts(bytes_tokenizer):
    assert written(b"abcdef", bytes_tokenizer, stop_strings=["de", "cd", "bcx"])[0].text == "ab"


def test_a_stop_string_may_begin_and_end_inside_of_tokens():
    tokenizer = gptrs.Tokenizer.train_from_iterator(["xstopx xstopx"] * 9, 262)
    ids = tokenizer.encode("axstopx xstopx")
    assert len(ids) < 10 and any(i >= 256 for i in ids)

    class Says(Writes):
        def __init__(self):
            super().__init__(b"", tokenizer.vocab_size)
            self.said = ids

    (found,) = complete(
        Says(), [[0]], max_new_tokens=len(ids), temperature=0, tokenizer=tokenizer, stop_strings=["stop"]
    )
    assert (found.text, found.ended_by) == ("ax", "stop_string")
    assert "stop" in tokenizer.decode(found.ids) and "stop" not in tokenizer.decode(found.ids[:-1])


def test_characters_of_several_bytes_stop_when_they_are_whole(bytes_tokenizer):
    whole, _ = written("aé→b".encode(), bytes_tokenizer, stop_strings=["→"])
    assert whole.text == "aé" and len(whole.ids) == 6


def test_broken_characters_are_written_as_decode_writes_them(bytes_tokenizer):
    text = b"a\xc3b\xe2\x86"
    whole, _ = written(text, bytes_tokenizer)
    assert whole.text == bytes_tokenizer.decode(list(text))
    stopped, _ = written(text, bytes_tokenizer, stop_strings=["b\ufffd"])
    assert (stopped.text, stopped.ended_by) == ("a\ufffd", "stop_string")


def test_an_id_without_a_token_adds_no_text(bytes_tokenizer):
    tokens = [ord("a"), 0xC3, 300, 0xA9, 257]  # 257 and 300 stand behind the tokenizer's ids
    settings = {"max_new_tokens": 5, "temperature": 0, "tokenizer": bytes_tokenizer, "stop_strings": ["é!"]}
    (whole,) = complete(Writes(tokens, vocab_size=301), [[0]], **settings)
    assert (whole.ids, whole.text) == (tokens, "aé")
    streamed = stream_tokens(Writes(tokens, vocab_size=301), [0], **settings)
    assert [token.text for token in streamed] == ["a", "", "", "", "é"]


def test_a_stop_token_is_no_text(bytes_tokenizer):
    whole, _ = written(b"ab!c", bytes_tokenizer, stop_tokens=[ord("!")], stop_strings=["b!"])
    assert (whole.text, whole.ended_by, bytes(whole.ids)) == ("ab", "stop_token", b"ab!")


def test_each_sequence_of_a_batch_stops_at_its_own_string(bytes_tokenizer):
    model = sharp(ModelConfig(**SIZES | {"vocab_size": 257}))
    settings = {"max_new_tokens": 30, "seed": 2, "tokenizer": bytes_tokenizer}
    whole = complete(model, PROMPTS, **settings)
    stop = [found.text[4:6] for found in whole[:2]]
    for full, short in zip(whole, complete(model, PROMPTS, stop_strings=stop, **settings), strict=True):
        places = [full.text.find(s) for s in stop if s in full.text]
        assert short.text == (full.text[: min(places)] if places else full.text)
        assert short.ids == full.ids[: len(short.ids)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be a number above 0, got 0\.0; hint"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be a number above 0, got nan"),
        ({"seed": 2**64}, "seed must be an integer of 64 bits, got 18446744073709551616; hint"),
        ({"seed": -(2**63) - 1}, "seed must be an integer of 64 bits, got -9223372036854775809"),
        ({"logprobs": -1}, "logprobs must be at least 0, got -1"),
        ({"prefill_chunk": 0}, "prefill_chunk must be at least 1, got 0"),
        ({"n_drafts": -1}, "n_drafts must be at least 0, got -1"),
        ({"n_drafts": 1}, r"n_drafts \(1\) needs a model with further-token modules, got n_mtp_layers=0; hint"),
        ({"n_drafts": 1, "use_cache": False}, "n_drafts needs the cache, got use_cache=False"),
        ({"is_compiled": True, "use_cache": False}, "is_compiled needs the cache, got use_cache=False"),
        ({"stop_strings": ["a"]}, "stop_strings need the text of the ids; hint: tokenizer="),
        ({"stop_strings": "a"}, "stop_strings must be a list of texts that are not empty, got 'a'"),
        ({"stop_strings": ["a", ""]}, "stop_strings must be a list of texts that are not empty"),
    ],
)
def test_impossible_settings_are_refused_by_the_call_itself(settings, message):
    model = Transformer(CONFIGS["learned"])
    for call in (complete, lambda *given, **settings: stream_tokens(given[0], given[1][0], **settings)):
        with pytest.raises(ValueError, match=message):
            call(model, [[1]], max_new_tokens=4, **settings)


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "logprobs", "prefill_chunk", "n_drafts", "seed"])
@pytest.mark.parametrize("value", [1.5, "3", True])
def test_a_setting_that_is_no_whole_number_is_named(name, value):
    with pytest.raises(TypeError, match=rf"^{name} must be a whole number, got {value!r}$"):
        complete(Transformer(CONFIGS["learned"]), [[1]], **{"max_new_tokens": 4, name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_p": "1"}, "top_p must be a number, got '1'"),
        ({"min_p": "1"}, "min_p must be a number, got '1'"),
        ({"repetition_penalty": True}, "repetition_penalty must be a number, got True"),
        ({"stop_tokens": 5}, "stop_tokens must be a list of ids, got 5"),
        ({"stop_tokens": ["5"]}, r"stop_tokens must be a list of ids, got \['5'\]"),
        ({"stop_strings": [5]}, r"stop_strings must be a list of texts, got \[5\]"),
    ],
)
def test_a_setting_of_another_type_is_named(settings, message):
    with pytest.raises(TypeError, match=message):
        complete(Transformer(CONFIGS["learned"]), [[1]], max_new_tokens=4, **settings)


def test_integers_of_numpy_are_integers():
    model = Transformer(CONFIGS["learned"])
    plain = {"max_new_tokens": 4, "top_k": 3, "seed": 7, "stop_tokens": [1]}
    numpys = {name: np.int64(value) for name, value in plain.items() if name != "stop_tokens"}
    assert complete(model, [[1]], **numpys, stop_tokens=np.array([1])) == complete(model, [[1]], **plain)


@pytest.mark.parametrize("seed", [1.5, "1", True, 2**64])
def test_a_model_names_a_seed_that_is_none(seed):
    with pytest.raises(ValueError, match="seed must be an integer of 64 bits, got"):
        Transformer(CONFIGS["learned"], seed=seed)


# ── compiled ──


@torch.no_grad()
def test_fixed_shapes_give_the_same_states(model):
    tokens = torch.randint(37, (3, 20), generator=torch.Generator().manual_seed(0))
    plain, fixed = (new_cache(model.config, 3, 24) for _ in range(2))
    for cache in (plain, fixed):
        model.hidden(tokens[:, :9], cache=cache)
        cache.crop((5, 1, 9))
    fixed.fix_shapes()
    for a, b in ((9, 10), (10, 11), (11, 14), (14, 15)):
        expected, found = (model.hidden(tokens[:, a:b], cache=cache) for cache in (plain, fixed))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
        for cache in (plain, fixed):
            cache.crop([length - 1 for length in cache.lengths])
    assert plain.lengths == fixed.lengths
    assert fixed.mask(1).shape == (3, 1, 1, 24) and fixed.positions(2).shape == (3, 2)
    assert fixed.positions(1).squeeze(1).tolist() == list(fixed.lengths)


def test_a_full_cache_of_fixed_shapes_is_refused_as_well():
    cache = new_cache(CONFIGS["learned"], 1, 4)
    cache.fix_shapes()
    cache.advance(3)
    with pytest.raises(ValueError, match="the cache holds 4 positions, 5 needed"):
        cache.check(2)


@pytest.fixture
def without_code_generation():
    """Compilation as far as the graph and its guards, which decide what is compiled anew; kernels take a minute."""
    torch.compiler.reset()
    with torch.compiler.set_stance(force_backend="eager"):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("without_code_generation")
def test_a_compiled_step_is_compiled_once_and_gives_the_same_tokens(model):
    settings = {"max_new_tokens": 40, "temperature": 0, "is_compiled": True}
    for prompts in (PROMPTS[:1], PROMPTS):
        plain = generate(model, prompts, max_new_tokens=40, temperature=0)
        torch._dynamo.utils.counters.clear()
        assert generate(model, prompts, **settings) == plain
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
        shorter = [prompt[:3] for prompt in prompts]
        expected = generate(model, shorter, max_new_tokens=50, temperature=0)
        # Another cache, other prompts and lengths: the same size, so what was compiled serves.
        assert generate(model, shorter, **settings | {"max_new_tokens": 50}) == expected
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("without_code_generation")
def test_many_more_steps_compile_nothing_more():
    model = sharp(CONFIGS["latent"])
    tokens = stream_tokens(model, [1, 2], max_new_tokens=100, is_compiled=True, seed=0)
    for _ in range(3):
        next(tokens)
    torch._dynamo.utils.counters.clear()
    assert len(list(tokens)) == 97
    assert not torch._dynamo.utils.counters["stats"]
    assert not torch._dynamo.utils.counters["frames"]


def test_generated_kernels_give_the_same_tokens():
    """The whole way, down to machine code, for one layer."""
    torch.compiler.reset()
    model = sharp(dataclasses.replace(CONFIGS["latent"], n_layers=1, n_mtp_layers=0))
    plain = generate(model, [[1, 2, 3]], max_new_tokens=20, temperature=0)
    assert generate(model, [[1, 2, 3]], max_new_tokens=20, temperature=0, is_compiled=True) == plain
