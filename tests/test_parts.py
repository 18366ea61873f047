"""What a step is made of: documents of a row, parts of the loss, biases that nothing but their balance moves."""

import numpy as np
import pytest
import torch

from gptrs.dataset import Dataset, prepare
from gptrs.loader import Loader
from gptrs.model import ModelConfig, Transformer
from gptrs.model.moe import max_violation
from gptrs.tokenizer import Tokenizer
from gptrs.train.corpus import Rows
from gptrs.train.optim import adamw
from gptrs.train.parts import Parts, documents

EOT = 22
CONFIG = ModelConfig.preset(
    "deepseek-tiny", vocab_size=23, dim=32, n_layers=2, n_heads=2, inter_dim=48, kv_lora_rank=8, moe_inter_dim=16
)


def parts(**settings: object) -> Parts:
    given = {"mtp_weight": 0.5, "balance_weight": 0.25, "bias_speed": 0.01, "attention": "stream", "eot_id": EOT}
    given["n_further"] = CONFIG.n_mtp_layers
    return Parts(**given | settings)  # type: ignore[arg-type]


def rows(B: int = 4, T: int = 16, seed: int = 0) -> Rows:
    """Rows of a stream with several ends in each."""
    ids = torch.randint(EOT, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    ids[:, [4, 9, T - 1]] = EOT
    return Rows(ids[:, :-1], ids[:, 1:])


def test_the_worked_example() -> None:
    found = documents(torch.tensor([[False, False, True, False]]))
    assert found["doc_ids"].tolist() == [[0, 0, 0, 1]] and found["positions"].tolist() == [[0, 1, 2, 0]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Tokenizer]:
    folder = tmp_path_factory.mktemp("parts")
    lines = [f'{{"text": "{"to be or not " * (i % 7)}to be {i}"}}' for i in range(200)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.train([folder / "text.jsonl"], 280, progress=False)
    return prepare([folder / "text.jsonl"], tokenizer, folder / "tokens", progress=False), tokenizer


def test_documents_found_by_their_ends_are_the_loader_s(dataset: tuple[Dataset, Tokenizer]) -> None:
    tokens, tokenizer = dataset
    with Loader(tokens, seq_len=32, global_batch=8, seed=3, documents=True) as loader:
        for _ in range(5):
            batch = next(loader)
            found = documents(batch.tokens == tokenizer.eot_id)
            own = batch.doc_ids - batch.doc_ids[:, :1]
            assert torch.equal(found["doc_ids"], own.long()) and int(own.max()) >= 2
            inner = found["doc_ids"] > 0  # the first document of a row may have begun in the row before
            assert torch.equal(found["positions"][inner], batch.positions[inner].long())
            ids = np.stack([tokens.doc_ids(int(start), 33) for start in batch.starts])  # with the target of the last
            assert np.array_equal(ids[:, 1:] != ids[:, :-1], (batch.tokens == tokenizer.eot_id).numpy())


def test_further_tokens_are_not_taught_across_documents_that_attention_reads_across() -> None:
    model, batch = Transformer(CONFIG), rows()
    step = parts()
    loss = step.loss(model, batch)
    ends = batch.tokens == EOT
    losses = model.losses(batch.tokens, batch.targets, ends=ends)
    expected = losses["next"] + 0.5 * losses["further"] + 0.25 * losses["balance"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses["further"].item() != pytest.approx(model.losses(batch.tokens, batch.targets)["further"].item(), 1e-5)
    other = Rows(batch.tokens, batch.targets.clone())
    other.targets[:, 5] = 3  # position 4 is an end: a token two behind position 4 or three is another document's
    changed = model.losses(other.tokens, other.targets, ends=ends)
    assert changed["further"].item() == losses["further"].item() and changed["next"] != losses["next"]


def test_attention_inside_documents_reads_nothing_before_them() -> None:
    model, batch = Transformer(CONFIG).double().eval(), rows()
    changed = Rows(batch.tokens.clone(), batch.targets)
    changed.tokens[:, :4] = (changed.tokens[:, :4] + 1) % EOT
    for attention, is_same in (("documents", True), ("stream", False)):
        step = parts(attention=attention)
        states = [model.hidden(b.tokens, **step.documents(b.tokens))[:, 5:] for b in (batch, changed)]
        difference = (states[0] - states[1]).abs().max()  # other tokens of an expert round otherwise
        assert difference < 1e-12 if is_same else difference > 1e-3
    inside = parts(attention="documents")
    expected = model.next_loss(batch.tokens, batch.targets, **documents(batch.tokens == EOT))
    assert inside.next_loss(model, batch).item() == expected.item() != parts().next_loss(model, batch).item()


def test_a_log_has_the_means_of_the_last_update_s_microbatches() -> None:
    model, step = Transformer(CONFIG).train(), parts()
    mixtures = [mixture for _, mixture in model.experts()]
    seen = []
    totals = sum(step.counts(rows(seed=seed)) for seed in range(3))
    assert isinstance(totals, torch.Tensor)
    for seed in range(3):
        step.loss(model, rows(seed=seed), totals)
        batch = rows(seed=seed)
        seen.append(model.eval().losses(batch.tokens, batch.targets, ends=batch.tokens == EOT))
        model.train()
    step.after_update(mixtures)
    log = step.log()
    for name in ("next", "further", "balance"):
        assert log[f"{name}_loss"] == pytest.approx(sum(losses[name].item() for losses in seen) / 3, rel=1e-5)
    assert log["max_violation"] == pytest.approx(max(map(max_violation, step.loads)), abs=1e-4)
    assert sum(int(loads.sum()) for loads in step.loads) == 3 * 4 * 2 * (16 + 15), "two choices a token, two layers"


def test_a_gpt_has_nothing_to_add_to_its_log() -> None:
    model = Transformer(ModelConfig(vocab_size=23, max_seq_len=16, dim=8, n_layers=1, n_heads=2, inter_dim=16))
    step, batch = parts(), rows()
    assert step.loss(model, batch).item() == model.next_loss(batch.tokens, batch.targets).item()
    step.after_update([])
    assert step.log() == {}


def test_neither_optimizer_nor_weight_decay_moves_a_router_s_bias() -> None:
    model = Transformer(CONFIG).train()
    biases = [mixture.router.bias for _, mixture in model.experts()]
    with torch.no_grad():
        for bias in biases:
            assert bias is not None
            bias.copy_(torch.linspace(-2, 2, len(bias)))
    optimizer = adamw(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(bias) for bias in biases}
    before = model.layers[1].ffn.router.weight.detach().clone()  # type: ignore[union-attr]
    step = parts(bias_speed=0.0)
    for seed in range(3):
        step.loss(model, rows(seed=seed)).backward()
        optimizer.step()
        step.after_update([mixture for _, mixture in model.experts()])
    assert not torch.equal(before, model.layers[1].ffn.router.weight)  # type: ignore[union-attr]
    for bias in biases:
        assert bias is not None and torch.equal(bias, torch.linspace(-2, 2, len(bias)))


def test_in_training_on_skewed_text_the_bias_bounds_the_violation() -> None:
    """Tokens as frequent as words are: the loss alone leaves some experts with twice the mean load."""
    found: dict[float, list[float]] = {}
    frequencies = 1 / torch.arange(1, 24.0)
    for speed in (0.0, 0.01):
        model = Transformer(ModelConfig.preset("deepseek-tiny", **SKEWED), seed=2).train()
        optimizer = adamw(model, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
        generator = torch.Generator().manual_seed(0)
        step, found[speed] = parts(bias_speed=speed, mtp_weight=0.0, balance_weight=0.0, eot_id=None), []
        for _ in range(120):
            ids = torch.multinomial(frequencies, 8 * 32, replacement=True, generator=generator).view(8, 32)
            step.loss(model, Rows(ids, (7 * ids + 3) % 23)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step.after_update([mixture for _, mixture in model.experts()])
            found[speed].append(max_violation(step.loads[0]))
    late = {speed: sum(values[50:]) / 70 for speed, values in found.items()}
    assert late[0.0] > 1.0 and late[0.01] < 0.75 * late[0.0]


SKEWED = {
    "vocab_size": 23, "dim": 32, "n_layers": 1, "n_dense_layers": 0, "n_heads": 2, "kv_lora_rank": 8,
    "moe_inter_dim": 8, "n_mtp_layers": 0,
}  # fmt: skip


def test_the_z_term_is_in_the_loss_and_apart_in_the_log() -> None:
    model, batch = Transformer(CONFIG).double(), rows()
    plain, weighted = parts(), parts(z_weight=0.125)
    difference = weighted.loss(model, batch) - plain.loss(model, batch)
    for step in (plain, weighted):
        step.after_update([])
    assert difference.item() == pytest.approx(0.125 * weighted.log()["z_loss"], rel=1e-9)
    assert weighted.log()["next_loss"] == pytest.approx(plain.log()["next_loss"], rel=1e-12)
    logits = model(batch.tokens)
    assert weighted.log()["z_loss"] == pytest.approx(logits.logsumexp(dim=-1).square().mean().item(), rel=1e-9)
    assert weighted.next_loss(model, batch).item() == plain.next_loss(model, batch).item()


def test_shares_of_the_z_term_add_up() -> None:
    model, step, ids = Transformer(CONFIG).double(), parts(z_weight=0.125), rows()
    batch = Rows(ids.tokens, ids.targets.clone())
    batch.targets[0, 3:] = -100
    totals = step.counts(batch)
    whole = step.loss(model, batch)
    shares = [step.loss(model, Rows(batch.tokens[i : i + 2], batch.targets[i : i + 2]), totals) for i in (0, 2)]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-9)  # type: ignore[union-attr]
