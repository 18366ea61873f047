"""Modules that predict the token behind the next: what they see, what they learn, where documents end."""

import pytest
import torch

from gptrs.model import ModelConfig, Transformer, next_token_loss
from gptrs.model.loss import crosses_an_end

CONFIG = ModelConfig(
    vocab_size=23, max_seq_len=64, dim=32, n_layers=2, n_heads=2, inter_dim=48, position="rope", norm="rms",
    feed_forward="swiglu", has_bias=False, is_head_tied=False, n_mtp_layers=2,
)  # fmt: skip


def tokens(T=16, B=3, seed=0):
    return torch.randint(23, (B, T), generator=torch.Generator().manual_seed(seed))


def logits_of(model, x, **given):
    states = model.further_states(model.hidden(x, **given), x, given.get("positions"), given.get("doc_ids"))
    return [model.logits(state) for state, _ in states]


def test_a_later_token_never_changes_what_is_predicted_before_it():
    """At depth d a position has seen d tokens more than its own, and no others."""
    model, x = Transformer(CONFIG).eval(), tokens()
    before = logits_of(model, x)
    assert [logits.shape[1] for logits in before] == [15, 14]
    changed = x.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 23
    for depth, (a, b) in enumerate(zip(before, logits_of(model, changed), strict=True), start=1):
        assert torch.equal(a[:, : 9 - depth], b[:, : 9 - depth])
        assert not torch.equal(a[:, 9 - depth], b[:, 9 - depth])


def test_the_loss_is_the_mean_of_the_depths_and_weighs_as_told():
    model, x, y = Transformer(CONFIG), tokens(), tokens(seed=1)
    losses = model.losses(x, y)
    further = [next_token_loss(logits, y[:, d:]) for d, logits in enumerate(logits_of(model, x), start=1)]
    assert losses["further"].item() == pytest.approx(sum(further).item() / 2, abs=1e-5)
    total = model.loss(x, y, mtp_weight=0.5).item()
    assert total == pytest.approx(losses["next"].item() + 0.5 * losses["further"].item(), abs=1e-5)


def test_nothing_is_predicted_across_the_end_of_a_document():
    model, x = Transformer(CONFIG), tokens()
    doc_ids = torch.zeros_like(x)
    doc_ids[:, 6:] = 1
    positions = torch.tensor([[*range(6), *range(10)]]).expand(3, -1)
    y = x.roll(-1, 1)
    whole = model.losses(x, y, positions=positions, doc_ids=doc_ids)["further"]
    by_depth = []
    for depth, logits in enumerate(logits_of(model, x, positions=positions, doc_ids=doc_ids), start=1):
        expected = y[:, depth:].clone()
        expected[:, 5 - depth : 6] = -100  # what they are to predict is another document's
        by_depth.append(next_token_loss(logits, expected))
    assert whole.item() == pytest.approx(sum(by_depth).item() / 2, abs=1e-5)


def test_ends_alone_keep_further_tokens_inside_documents_and_attention_as_it_is():
    model, x = Transformer(CONFIG), tokens()
    ends = torch.zeros_like(x, dtype=torch.bool)
    ends[:, [5, 15]] = True  # the last one ends with the row: its target is another document's
    y = x.roll(-1, 1)
    losses, plain = model.losses(x, y, ends=ends), model.losses(x, y)
    assert torch.equal(losses["next"], plain["next"]), "the next token counts across an end, as in GPT-2's training"
    by_depth = []
    for depth, logits in enumerate(logits_of(model, x), start=1):
        expected = y[:, depth:].clone()
        expected[:, 5 - depth : 6] = -100
        expected[:, 15 - depth :] = -100
        by_depth.append(next_token_loss(logits, expected))
    assert losses["further"].item() == pytest.approx(sum(by_depth).item() / 2, abs=1e-5)
    assert losses["further"].item() != pytest.approx(plain["further"].item(), abs=1e-4)


def test_a_further_token_counts_only_where_no_document_ends_before_it():
    ends = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 1]]).bool()
    for depth in (1, 2, 3):
        expected = [bool(ends[0, i : i + depth + 1].any()) for i in range(8 - depth)]
        assert crosses_an_end(ends, depth)[0].tolist() == expected


def test_documents_too_short_for_any_further_token_leave_loss_and_gradients_finite():
    model, x = Transformer(CONFIG), tokens()
    doc_ids = torch.arange(16).expand(3, -1)
    positions = torch.zeros_like(x)
    losses = model.losses(x, x.roll(-1, 1), positions=positions, doc_ids=doc_ids)
    assert losses["further"].item() == 0.0
    (losses["next"] + losses["further"]).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_packed_documents_equal_each_document_alone():
    model, x = Transformer(CONFIG).double().eval(), tokens(12, 1)
    doc_ids = torch.tensor([[0] * 5 + [1] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    together = model(x, positions=positions, doc_ids=doc_ids)
    alone = torch.cat((model(x[:, :5]), model(x[:, 5:])), dim=1)
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


def test_gradients_reach_embedding_layers_and_module():
    model, x = Transformer(CONFIG), tokens()
    model.losses(x, x.roll(-1, 1))["further"].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_module_learns_to_look_one_further():
    """Counting rows: what follows is known from one token; the module must learn it for the token behind the next."""
    model = Transformer(CONFIG, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = tokens(1, 64, seed=2)
    rows = (start + torch.arange(12)) % 23  # (64, 12)
    for _ in range(60):
        loss = model.loss(rows[:, :-1], rows[:, 1:], mtp_weight=1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for depth, logits in enumerate(logits_of(model, rows[:, :-1]), start=1):
        guessed = logits.argmax(-1)
        assert (guessed == rows[:, 1 + depth :]).float().mean() > 0.95, depth


def test_rows_too_short_for_a_depth_have_none():
    model = Transformer(CONFIG)
    assert "further" not in model.losses(tokens(1), tokens(1))
    assert len(logits_of(model, tokens(2))) == 1
    assert model.loss(tokens(2), tokens(2)).isfinite()


def test_packed_documents_predict_further_as_each_alone():
    model, x = Transformer(CONFIG).double().eval(), tokens(14, 1)
    doc_ids = torch.tensor([[0] * 6 + [1] * 8])
    positions = torch.tensor([[*range(6), *range(8)]])
    together = logits_of(model, x, positions=positions, doc_ids=doc_ids)
    for depth, logits in enumerate(together, start=1):
        first, second = (logits_of(model, part)[depth - 1] for part in (x[:, :6], x[:, 6:]))
        assert torch.allclose(logits[:, : 6 - depth], first, rtol=0, atol=1e-12)
        assert torch.allclose(logits[:, 6:], second, rtol=0, atol=1e-12)
