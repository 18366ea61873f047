"""What happens inside a model: the lecture's sentence, gradients, neighbours."""

import math

import pytest
import torch

from gptrs import trace
from gptrs.model import ModelConfig, Transformer
from gptrs.tokenizer import Tokenizer

torch.set_num_threads(1)
SENTENCE = "A true friend accepts you"
TEXTS = ["A true friend accepts you as you are", "a friend is true", "who accepts a friend is a true friend"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_from_iterator(TEXTS, 280, progress=False)


def make(tokenizer: Tokenizer, **changes: object) -> Transformer:
    sizes = {"max_seq_len": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "inter_dim": 32, **changes}
    return Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes), seed=1)  # type: ignore[arg-type]


def test_each_prefix_of_the_sentence_has_its_target_and_probability(tokenizer: Tokenizer) -> None:
    model = make(tokenizer)
    ids = tokenizer.encode_ordinary(SENTENCE)
    guesses = trace.guesses(model, tokenizer, SENTENCE)
    assert len(guesses) == len(ids) - 1
    for t, guess in enumerate(guesses):
        assert b"".join(guess.prefix) == tokenizer.decode_bytes(ids[: t + 1])
        assert guess.target == tokenizer.id_to_token(ids[t + 1])
        # the same from the prefix alone: later tokens have no influence
        logits = model(torch.tensor([ids[: t + 1]]))[0, -1]
        assert guess.probability == pytest.approx(logits.softmax(-1)[ids[t + 1]].item(), rel=1e-4)
        assert guess.likeliest == tokenizer.id_to_token(int(logits.argmax()))
        assert guess.likeliest_probability == pytest.approx(logits.softmax(-1).max().item(), rel=1e-4)


def test_the_probabilities_give_the_loss(tokenizer: Tokenizer) -> None:
    model = make(tokenizer)
    ids = torch.tensor([tokenizer.encode_ordinary(SENTENCE)])
    guesses = trace.guesses(model, tokenizer, SENTENCE)
    mean = -sum(math.log(guess.probability) for guess in guesses) / len(guesses)
    assert mean == pytest.approx(model.loss(ids[:, :-1], ids[:, 1:]).item(), rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"is_head_tied": False}, {"position": "sinusoidal"}, {"dropout": 0.5}])
def test_the_gradient_of_the_sentence_reaches_every_trainable_tensor(
    tokenizer: Tokenizer, changes: dict[str, object]
) -> None:
    model = make(tokenizer, **changes).train()
    found = trace.gradients(model, tokenizer, SENTENCE)
    assert [reach.name for reach in found] == [name for name, _ in model.named_parameters()]
    assert all(reach.norm > 0 for reach in found)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_tensor_is_not_listed_and_an_unused_one_has_norm_zero(tokenizer: Tokenizer) -> None:
    model = make(tokenizer)
    model.embed.token.weight.requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    found = {reach.name: reach.norm for reach in trace.gradients(model, tokenizer, SENTENCE)}
    assert "embed.token.weight" not in found and found["unused"] == 0.0


def test_a_short_context_reads_the_beginning(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, max_seq_len=3)
    assert len(trace.guesses(model, tokenizer, SENTENCE)) == 3
    with pytest.raises(ValueError, match="expected a text of two tokens or more, got 1 in 'A'"):
        trace.guesses(model, tokenizer, "A")


def test_nearest_are_the_other_rows_by_cosine() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [-1.0, 0.0]])
    ((first, second, third),) = trace.nearest(weight, [0], k=9)
    assert (first[0], second[0], third[0]) == (1, 2, 3)
    assert first[1] == pytest.approx(2 / math.hypot(2, 0.1)) and third[1] == pytest.approx(-1)


def test_neighbours_name_tokens_before_and_after(tokenizer: Tokenizer) -> None:
    before, after = make(tokenizer).embed.token.weight, make(tokenizer, dim=32).embed.token.weight
    (found,) = trace.neighbours(before, after, tokenizer, [65], k=2)
    assert found.token == b"A" and len(found.before) == len(found.after) == 2


DEEPSEEK = ModelConfig.preset(
    "deepseek-tiny", vocab_size=23, dim=32, n_layers=2, n_heads=2, inter_dim=48, kv_lora_rank=8, moe_inter_dim=16
)


def test_usage_counts_every_choice_and_every_further_guess_inside_its_document() -> None:
    model = Transformer(DEEPSEEK, seed=3).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # guesses that differ
    ids = torch.randint(22, (6, 17), generator=torch.Generator().manual_seed(0))
    ids[:, 6] = 22
    rows = [(ids[:4, :-1], ids[:4, 1:]), (ids[4:, :-1], ids[4:, 1:])]
    found = trace.usage(model, rows, eot_id=22)
    assert model.training and all(mixture.take_loads() is None for _, mixture in model.experts())
    assert [load.layer for load in found.loads] == ["layer 1", "further token 1"]
    assert [sum(load.counts) for load in found.loads] == [2 * 6 * 16, 2 * 6 * 15] and found.n_tokens == 6 * 16
    (one,) = found.further
    right = accepted = next_right = n = 0
    losses = []
    model.eval()
    for row in ids:
        tokens = row[None, :-1]
        with torch.no_grad():
            hidden = model.hidden(tokens)
            main = model.logits(hidden)[0].argmax(-1)
            ((states, _),) = model.further_states(hidden, tokens, None, None)
            logits = model.logits(states)[0]
        for i in range(15):
            if 22 in row[i : i + 2].tolist():
                continue
            n += 1
            guess, text = int(logits[i].argmax()), int(row[i + 2])
            right += guess == text
            accepted += guess == int(main[i + 1])
            next_right += int(main[i + 1]) == text
            losses.append(-float(logits[i].log_softmax(-1)[text]))
    assert one.n_targets == n == 6 * 13 and 0 < accepted < n
    assert (one.right, one.next_right, one.accepted) == (right / n, next_right / n, accepted / n)
    assert one.loss == pytest.approx(sum(losses) / n, rel=1e-5)


def test_a_gpt_s_usage_is_empty_and_costs_nothing() -> None:
    model = Transformer(ModelConfig(vocab_size=23, max_seq_len=16, dim=8, n_layers=1, n_heads=2, inter_dim=16))
    assert trace.usage(model, iter([("never", "read")]), eot_id=None) == trace.Usage(n_tokens=0)  # type: ignore[list-item]
