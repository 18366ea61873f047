"""Where bytes go: files of a known release, caches, and what torch really keeps for the backward pass."""

import pytest
import torch

from gptrs.model import PRESETS, ModelConfig, Transformer, moe
from gptrs.model import memory as memories
from gptrs.model.count import n_params, totals
from gptrs.model.ranks import local
from gptrs.train.config import ParallelSettings
from gptrs.train.distributed import arrange
from gptrs.train.spread import Spread
from ranks import on_ranks

B, T = 2, 64


def test_deepseek_v3_has_the_numbers_of_its_released_files():
    found = memories.released(PRESETS["deepseek-v3"])
    assert found.total == 684_531_386_000
    assert (found.fp8, found.bf16, found.fp32) == (680_571_043_840, 3_918_786_560, 41_555_600)
    assert (found.scales, found.duplicated) == (41_540_496, 1_853_358_080)
    assert found.total == n_params(PRESETS["deepseek-v3"]) + found.scales + found.duplicated
    assert found.n_bytes == 680_571_043_840 + 2 * 3_918_786_560 + 4 * 41_555_600


def test_scales_cover_edges_of_matrices():
    """A block at the edge has a scale too: 576 = 4·128 + 64 columns of the latent take 5 blocks."""
    one = memories.released(ModelConfig.preset("deepseek-v3", n_layers=3, n_mtp_layers=0))
    two = memories.released(ModelConfig.preset("deepseek-v3", n_layers=3, n_mtp_layers=0, kv_lora_rank=513))
    assert two.scales - one.scales == 3 * (
        128 * 256 // 128
    )  # kv_up has a fifth column of blocks, kv_down still five rows


def test_other_models_have_no_released_form():
    with pytest.raises(ValueError, match="expected a model without linear biases and with a head of its own; hint"):
        memories.released(PRESETS["gpt2-small"])


def test_kinds_of_attention_cache_what_their_definitions_say():
    kinds = {kind.kind: kind for kind in memories.cache_kinds(PRESETS["deepseek-v3"])}
    assert {name: kind.n_bytes for name, kind in kinds.items()} == {
        "MHA": 61 * 128 * (192 + 128) * 2,
        "GQA": 61 * 8 * (192 + 128) * 2,
        "MQA": 61 * (192 + 128) * 2,
        "MLA": 61 * (512 + 64) * 2,
    }
    assert (kinds["MHA"].n_bytes, kinds["MLA"].n_bytes) == (4_997_120, 70_272)
    own = {name: [k.kind for k in memories.cache_kinds(config) if k.is_own] for name, config in PRESETS.items()}
    assert (own["gpt2-small"], own["llama-small"], own["kimi-k2"]) == (["MHA"], ["GQA"], ["MLA"])
    assert all(len(kind) == 1 for kind in own.values())


def kept_bytes(config: ModelConfig, *, checkpoints_blocks: bool) -> float:
    """Bytes for each token that autograd holds when the loss is known, each storage once, parameters left out."""
    model = Transformer(config).to(torch.bfloat16).train()
    model.checkpoints_blocks = checkpoints_blocks
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(config.vocab_size, (B, T))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / (B * T)


# Values as wide as keys: what a GPU runs as one kernel, the CPU does too and keeps nothing in between.
KEPT = {
    "gpt2": ModelConfig.preset("gpt2-small", n_layers=3, vocab_size=512, dim=384, n_heads=6),
    "grouped": ModelConfig.preset("llama-small", n_layers=3, vocab_size=512),
    "latent": ModelConfig.preset("deepseek-tiny", vocab_size=512, v_head_dim=48, q_lora_rank=64),
}


TINY = ModelConfig(vocab_size=5, max_seq_len=8, dim=16, n_layers=1, n_heads=4, inter_dim=32)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("checkpoints_blocks", [False, True])
def test_activations_are_what_torch_keeps(monkeypatch, name, checkpoints_blocks):
    monkeypatch.setattr(moe, "_goes_by_expert", lambda *_: False)  # a GPU's way, of which plans speak
    config = KEPT[name]
    found = memories.activations(config)
    expected = found.kept
    if checkpoints_blocks:  # the block that is computed again is not there yet when the loss is
        ffn = [found.experts if config.has_experts(layer) else found.feed_forward for layer in range(config.n_layers)]
        expected = found.checkpointed - found.attention - max(ffn)
    # the gradient of the head is there already, in bfloat16, and is not a token's
    expected += 2 * config.vocab_size * config.dim * (1 + config.n_mtp_layers) / (B * T)
    within = 0.02 if config.n_mtp_layers else 0.01  # a further token has a position less
    assert kept_bytes(config, checkpoints_blocks=checkpoints_blocks) == pytest.approx(expected, rel=within)


def test_one_rank_holds_everything_at_sixteen_bytes():
    config = PRESETS["gpt2-small"]
    rank = memories.rank(config, seq_len=1024)
    assert rank.n_params == n_params(config)
    assert rank.weights + rank.gradients + rank.optimizer == 16 * n_params(config)
    assert rank.activations == memories.activations(config).kept * 1024
    assert rank.total == 16 * n_params(config) + rank.activations
    assert rank.total_checkpointed == 16 * n_params(config) + rank.activations_checkpointed


def test_ranks_together_hold_what_the_split_says():
    config = PRESETS["deepseek-v3"]
    whole = memories.rank(config, seq_len=4096)
    routed = 59 * 256 * 44_040_192
    rank = memories.rank(config, data=2, expert=64, seq_len=4096, micro_batch=3)
    assert rank.n_params == n_params(config) - routed + routed // 64
    trained = totals(config).trainable + 127 * 59 * 256 * 7168  # all ranks together: each number once, routers on each
    assert 128 * rank.optimizer == pytest.approx(12 * trained, rel=1e-4)  # the fullest has 5 of 576 rows of kv_down
    assert rank.activations == 3 * whole.activations
    halved = memories.rank(config, tensor=2, seq_len=4096)
    whole_on_each = n_params(config) - 2 * (n_params(config) - halved.n_params)
    latents = 62 * 7168 * (1536 + 512 + 64) + 2 * 7168**2  # what makes them, and the matrix that joins state and token
    assert 59 * 256 * 7168 < whole_on_each - latents < 1.02 * 59 * 256 * 7168  # routers, their biases and norms
    assert whole.activations / 2 < halved.activations < whole.activations


HELD = {
    "gpt": ModelConfig(vocab_size=23, max_seq_len=16, dim=16, n_layers=2, n_heads=4, inter_dim=32),
    "llama": ModelConfig.preset("llama-small", vocab_size=23, dim=16, n_layers=1, n_heads=4, inter_dim=32),
    "deepseek": ModelConfig.preset(
        "deepseek-tiny", vocab_size=23, dim=16, n_layers=2, n_heads=4, inter_dim=32, kv_lora_rank=8, moe_inter_dim=8,
        q_lora_rank=8,
    ),
}  # fmt: skip
SPLITS = (
    {"tensor": 2, "data": 2},
    {"tensor": 4},
    {"expert": 2, "tensor": 2},
    {"data": 4},
    {"data": 2, "expert": 2},
)


def held(world) -> dict[str, list[int]]:
    """For each split and model: parameters on this rank, those that it updates, and what the plan says of the two."""
    found = {}
    for sizes in SPLITS:
        for kind, config in HELD.items():
            if "expert" in sizes and not config.n_routed_experts:
                continue
            split = ParallelSettings(**{**sizes, "data": "fsdp"}).sizes(world.size, per_machine=world.size)
            world.sizes = split
            world.mesh, world.data_group = arrange(split, world.device)
            own = Spread(Transformer(config), world, dtype=torch.float32).model
            updated = sum(local(p).numel() for p in own.parameters() if p.requires_grad)
            plan = memories.rank(config, **sizes, seq_len=8)
            numbers = [updated, plan.optimizer // 12]
            if "data" not in sizes and "expert" not in sizes:  # nothing but what "tensor" divides
                numbers += [sum(local(p).numel() for p in own.parameters()), plan.n_params]
            found[f"{kind} {sizes}"] = numbers
    return found


def test_ranks_hold_what_the_plan_says(tmp_path):
    ranks = on_ranks(4, tmp_path, held)
    assert len(ranks[0]) == 11
    for name in ranks[0]:
        updated, planned, *all_of_it = map(max, zip(*(rank[name] for rank in ranks), strict=True))
        assert updated == planned, (name, ranks)
        assert not all_of_it or all_of_it[0] == all_of_it[1], (name, ranks)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("deepseek-v3", {"tensor": 3}, r"tensor parallelism \(3\) must divide the kv heads \(128\)"),
        ("llama-small", {"tensor": 12}, r"tensor parallelism \(12\) must divide the kv heads \(4\)"),
        ("deepseek-v3", {"expert": 3}, r"expert parallelism \(3\) must divide n_routed_experts \(256\)"),
        ("gpt2-small", {"expert": 2}, r"expert parallelism \(2\) needs experts, got n_routed_experts=0; hint: use 1"),
        ("tiny", {"tensor": 4}, r"tensor parallelism \(4\) must leave each rank some of the vocabulary \(5\)"),
        ("gpt2-small", {"data": 0}, r"data parallelism must be at least 1, got 0"),
    ],
)
def test_impossible_splits_are_refused(name, split, message):
    with pytest.raises(ValueError, match=message):
        memories.rank(TINY if name == "tiny" else PRESETS[name], seq_len=8, **split)
