"""The whole model: equal to transformers' GPT-2, causal, well initialised, and able to learn."""

import copy

import pytest
import torch
import torch.nn.functional as F

from gptrs.model import KVCache, ModelConfig, Transformer, next_token_loss

SIZES = {"vocab_size": 61, "max_seq_len": 32, "dim": 48, "n_layers": 3, "n_heads": 4, "inter_dim": 192}
POSITIONS = ["learned", "sinusoidal"]


def random_tokens(*shape, seed=0, vocab_size=61):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def gpt2_like(config, *, is_tied):
    """transformers' GPT-2 of the same sizes with random weights, biases and norms, larger than at initialisation."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.dim,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.inter_dim,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=is_tied,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


def pairs(ours, theirs):
    """Our tensor, theirs, and whether theirs is stored transposed (Conv1D)."""
    yield ours.embed.token.weight, theirs.transformer.wte.weight, False
    yield ours.embed.position.weight, theirs.transformer.wpe.weight, False
    for mine, other in zip(ours.layers, theirs.transformer.h, strict=True):
        for a, b, is_conv in (
            (mine.attn_norm, other.ln_1, False),
            (mine.attn.qkv, other.attn.c_attn, True),
            (mine.attn.output, other.attn.c_proj, True),
            (mine.ffn_norm, other.ln_2, False),
            (mine.ffn.up, other.mlp.c_fc, True),
            (mine.ffn.down, other.mlp.c_proj, True),
        ):
            yield a.weight, b.weight, is_conv
            yield a.bias, b.bias, False
    yield ours.norm.weight, theirs.transformer.ln_f.weight, False
    yield ours.norm.bias, theirs.transformer.ln_f.bias, False
    if ours.head is not None:
        yield ours.head.weight, theirs.lm_head.weight, False


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_logits_and_gradients_equal_transformers_gpt2(is_tied, dtype, tolerance):
    config = ModelConfig(**SIZES, is_head_tied=is_tied)
    ours, theirs = Transformer(config).to(dtype), gpt2_like(config, is_tied=is_tied).to(dtype)
    with torch.no_grad():
        for mine, other, is_transposed in pairs(ours, theirs):
            mine.copy_(other.T if is_transposed else other)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    tokens, targets = random_tokens(2, 32), random_tokens(2, 32, seed=1)
    logits, expected = ours(tokens), theirs(tokens).logits
    assert torch.allclose(logits, expected, rtol=0, atol=tolerance)

    next_token_loss(logits, targets).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    for mine, other, is_transposed in pairs(ours, theirs):
        assert torch.allclose(mine.grad, other.grad.T if is_transposed else other.grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_later_token_never_changes_an_earlier_logit(position):
    model = Transformer(ModelConfig(**SIZES, position=position)).eval()
    tokens = random_tokens(2, 32)
    logits = model(tokens)
    for t in (1, 13, 31):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 61
        assert torch.equal(model(changed)[:, :t], logits[:, :t])
        assert not torch.equal(model(changed)[:, t], logits[:, t])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_tensor_gets_a_gradient(position, is_tied):
    model = Transformer(ModelConfig(**SIZES, position=position, is_head_tied=is_tied))
    model.loss(random_tokens(4, 32), random_tokens(4, 32, seed=1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_loss_is_the_mean_over_the_targets_that_count():
    model = Transformer(ModelConfig(**SIZES))
    tokens, targets = random_tokens(2, 8), random_tokens(2, 8, seed=1)
    targets[0, :5] = -100
    surprise = -model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert model.loss(tokens, targets).item() == pytest.approx(surprise[targets >= 0].mean().item(), abs=1e-6)


def test_half_precision_logits_are_summed_in_single():
    logits, targets = torch.randn(2, 8, 61), random_tokens(2, 8)
    loss = next_token_loss(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(next_token_loss(logits.bfloat16().float(), targets).item(), abs=1e-7)


def test_a_fresh_model_is_as_unsure_as_chance():
    model = Transformer(ModelConfig(**SIZES))
    loss = model.loss(random_tokens(8, 32), random_tokens(8, 32, seed=1)).item()
    assert loss == pytest.approx(torch.tensor(61.0).log().item(), abs=0.1)


def test_initialisation_has_the_stated_spread():
    n_layers = 4
    config = ModelConfig(
        vocab_size=500, max_seq_len=200, dim=128, n_layers=n_layers, n_heads=4, inter_dim=512, is_head_tied=False
    )
    n_seen = 0
    for name, weight in Transformer(config).named_parameters():
        if weight.ndim == 2:
            std = 0.02 / (2 * n_layers) ** 0.5 if "attn.output" in name or "ffn.down" in name else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(weight.mean().item()) < std / 25, name
        else:
            assert torch.equal(weight, torch.full_like(weight, float("norm.weight" in name))), name
        n_seen += 1
    assert n_seen == 2 + n_layers * 12 + 2 + 1


def test_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    models = [Transformer(ModelConfig(**SIZES), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (model.layers[0].attn.qkv.weight for model in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_model_built_on_the_meta_device_becomes_the_same_real_one():
    with torch.device("meta"):
        model = Transformer(ModelConfig(**SIZES))
        assert model(torch.zeros(2, 8, dtype=torch.int64)).shape == (2, 8, 61)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    model.init_weights(5)
    expected = Transformer(ModelConfig(**SIZES), seed=5).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_tied_head_is_stored_once():
    tied, untied = (Transformer(ModelConfig(**SIZES, is_head_tied=is_tied)) for is_tied in (True, False))
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    hidden = torch.randn(2, 48)
    assert torch.equal(tied.logits(hidden), hidden @ tied.embed.token.weight.T)
    assert torch.equal(untied.logits(hidden), hidden @ untied.head.weight.T)


def test_dropout_acts_in_training_alone():
    model = Transformer(ModelConfig(**SIZES, dropout=0.2))
    without = Transformer(ModelConfig(**SIZES))
    tokens = random_tokens(2, 16)
    torch.manual_seed(0)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    assert torch.equal(model(tokens), without(tokens))


def test_dropout_reaches_the_input_the_weights_and_both_branches():
    """With almost everything dropped the output of each part is almost all zeros, or for attention, its bias."""
    model = Transformer(ModelConfig(**SIZES, dropout=0.9))
    torch.manual_seed(0)
    tokens = random_tokens(4, 32)
    x = model.embed(tokens, torch.arange(32))
    assert (x == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    block, silent = model.layers[0], copy.deepcopy(model.layers[0])
    silent.ffn.down.weight.data.zero_()  # leaves the attention branch; its output bias is 0
    x = torch.randn(4, 32, 48)
    assert (silent(x)[0] == x).float().mean().item() == pytest.approx(0.9, abs=0.02)
    silent = copy.deepcopy(block)
    silent.attn.output.weight.data.zero_()  # leaves the feed-forward branch
    assert (silent(x)[0] == x).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert not torch.equal(block.attn(x), block.attn(x))


@pytest.mark.parametrize("position", POSITIONS)
def test_one_batch_can_be_learned_by_heart(position):
    model = Transformer(ModelConfig(**SIZES, position=position))
    tokens, targets = random_tokens(4, 32), random_tokens(4, 32, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(150):
        loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.05:
            break
    assert loss.item() < 0.05


@pytest.mark.parametrize("position", POSITIONS)
def test_one_graph_compiles_for_any_length(position):
    model = Transformer(ModelConfig(**SIZES, position=position))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for T in (32, 17, 19) if position == "learned" else (32, 40, 41):
        tokens = random_tokens(2, T)
        assert torch.equal(compiled(tokens), model(tokens))


@torch.no_grad()
def test_a_compiled_model_fills_the_same_cache():
    model = Transformer(ModelConfig(**SIZES)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain_cache, compiled_cache = (KVCache(model.config, 2, 32) for _ in range(2))
    for T in (9, 1, 1, 1, 5):
        tokens = random_tokens(2, T)
        assert torch.equal(compiled(tokens, cache=compiled_cache), model(tokens, cache=plain_cache))
    for cache in (plain_cache, compiled_cache):
        cache.crop((3, 11))
    for T in (1, 1, 4):
        tokens = random_tokens(2, T)
        assert torch.equal(compiled(tokens, cache=compiled_cache), model(tokens, cache=plain_cache))
    assert compiled_cache.lengths == (9, 17)


def test_ninety_six_layers_train_with_blocks_computed_again():
    config = ModelConfig(**SIZES | {"n_layers": 96, "dim": 16, "n_heads": 2, "inter_dim": 32})
    model = Transformer(config)
    model.checkpoints_blocks = True
    tokens = random_tokens(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model.loss(tokens, tokens.roll(-1, 1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


DEEPSEEK = ModelConfig.preset("deepseek-tiny", vocab_size=61, n_layers=3)


def test_a_deepseek_model_learns_a_batch_by_heart():
    model = Transformer(DEEPSEEK)
    tokens, targets = random_tokens(4, 32), random_tokens(4, 32, seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(120):
        losses = model.losses(tokens, targets)
        (losses["next"] + 0.3 * losses["further"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if losses["next"].item() < 0.05:
            break
    assert losses["next"].item() < 0.05


def test_a_later_token_never_changes_an_earlier_logit_of_a_deepseek_model():
    model, tokens = Transformer(DEEPSEEK).eval(), random_tokens(2, 32)
    logits = model(tokens)
    for t in (1, 13, 31):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 61
        assert torch.allclose(model(changed)[:, :t], logits[:, :t], rtol=0, atol=1e-5)
        assert not torch.allclose(model(changed)[:, t], logits[:, t], rtol=0, atol=1e-3)


def test_deepseek_starts_with_one_deviation_everywhere():
    config = ModelConfig.preset("deepseek-tiny", n_layers=2, init_std=0.006)
    for name, parameter in Transformer(config).named_parameters():
        if parameter.ndim >= 2:
            assert parameter.std().item() == pytest.approx(0.006, rel=0.05), name
        else:
            assert parameter.unique().numel() == 1, name  # norms 1, routers' biases 0


def test_a_deepseek_model_computes_and_learns_in_bf16():
    model = Transformer(DEEPSEEK).bfloat16()
    tokens = random_tokens(2, 32)
    model.loss(tokens, tokens.roll(-1, 1)).backward()
    reference = Transformer(DEEPSEEK)
    reference.loss(tokens, tokens.roll(-1, 1)).backward()
    mine, theirs = model.layers[1].attn.q.weight.grad, reference.layers[1].attn.q.weight.grad
    assert mine.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(mine.float().flatten(), theirs.flatten(), dim=0) > 0.95
