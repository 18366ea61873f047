"""Scores of continuations against the logits of each pair alone."""

import pytest
import torch

from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer
from gptrs.score import score

SIZES = {"vocab_size": 31, "max_seq_len": 16, "dim": 24, "n_layers": 2, "n_heads": 3, "inter_dim": 48, "init_std": 0.3}
PAIRS = [([1, 2, 3], [4]), ([5], [6, 7, 8, 9]), ([0, 30], [1, 1]), ([7, 3, 9, 2, 8, 8], [5, 5, 5])]


@pytest.fixture
def model():
    return Transformer(ModelConfig(**SIZES), seed=3)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_is_the_log_probability_of_each_token_after_all_before_it(model, batch_size):
    for (prompt, continuation), found in zip(PAIRS, score(model, PAIRS, batch_size=batch_size), strict=True):
        log_probs = model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)  # (T, V)
        expected = [log_probs[len(prompt) + i - 1, token].item() for i, token in enumerate(continuation)]
        assert found.log_probs == pytest.approx(expected, abs=1e-5)
        assert found.total == pytest.approx(sum(expected), abs=1e-5)
    assert model.training


def test_each_part_of_the_model_is_left_in_its_mode(model):
    model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    score(model, PAIRS)
    assert [module.training for module in model.modules()] == modes and {True, False} == set(modes)
    model.train()


def test_what_greedy_generation_writes_is_greedy(model):
    written = generate(model, [[1, 2, 3]], max_new_tokens=5, temperature=0.0)[0]
    other = [*written[:-1], (written[-1] + 1) % 31]
    assert [s.is_greedy for s in score(model, [([1, 2, 3], written), ([1, 2, 3], other)])] == [True, False]


def test_a_prompt_that_fills_the_positions_still_predicts_one_more(model):
    assert len(score(model, [([1] * 16, [2])])[0].log_probs) == 1
    with pytest.raises(ValueError, match="pair 0 needs 17 positions, the model has 16; hint: shorten the prompt"):
        score(model, [([1] * 16, [2, 3])])


def test_impossible_pairs_are_refused(model):
    for pair, text in (
        (([], [1]), "expected a prompt of one token or more, got none in pair 1"),
        (([1], []), "expected a continuation of one token or more, got none in pair 1"),
        (([1], [31]), "expected ids from 0 to 30, got 31 in the continuation of pair 1"),
        (([-1], [3]), "expected ids from 0 to 30, got -1 in the prompt of pair 1"),
    ):
        with pytest.raises(ValueError, match=text):
            score(model, [PAIRS[0], pair])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        score(model, PAIRS, batch_size=0)
    assert score(model, []) == []


def test_a_diverged_model_is_named_instead_of_scored(model):
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="expected finite logits, got nan or infinity; hint: the model's training has"):
        score(model, [([1], [0])])
    assert model.training
