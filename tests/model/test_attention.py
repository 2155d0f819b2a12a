import pytest
import torch
from torch import nn

from mnerqg.model.attention import AttentivePooling, CrossAttention, LabelAttention, SingleQueryAttention

WIDTH = 8


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_attentive_pooling_is_its_formula() -> None:
    pool = AttentivePooling(width=WIDTH)
    states = noise(3, 5, WIDTH)
    mask = torch.ones(3, 5, dtype=torch.bool)
    scores = torch.tanh(states @ pool.project.weight.T + pool.project.bias) @ pool.score.weight[0]
    expected = torch.einsum("pl,pld->pd", scores.softmax(-1), states)
    torch.testing.assert_close(pool(states, mask), expected)


def test_attentive_pooling_looks_at_the_mask_only() -> None:
    pool = AttentivePooling(width=WIDTH)
    states, mask = noise(2, 3, 6, WIDTH), torch.zeros(2, 3, 6, dtype=torch.bool)
    mask[..., 1:4] = True
    found = pool(states, mask)
    torch.testing.assert_close(found, pool(states[..., 1:4, :], mask[..., 1:4]))
    changed = states.clone()
    changed[~mask] = 1e3
    torch.testing.assert_close(pool(changed, mask), found)
    one = torch.zeros(6, dtype=torch.bool)
    one[2] = True
    torch.testing.assert_close(pool(states[0, 0], one), states[0, 0, 2])


def multi_head_attention(
    attention: CrossAttention | SingleQueryAttention,
    states: torch.Tensor,
    keys: torch.Tensor,
    *,
    heads: int,
    key: nn.Linear,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """torch's own, with the projections of `attention`, of whose keys is `key`: [P, T, D], [P, S, D], [P, S]."""
    projections = (attention.query, key, attention.value)
    found, _ = torch.nn.functional.multi_head_attention_forward(
        states.transpose(0, 1),
        keys.transpose(0, 1),
        keys.transpose(0, 1),
        embed_dim_to_check=WIDTH,
        num_heads=heads,
        in_proj_weight=torch.cat([part.weight for part in projections]),
        in_proj_bias=torch.cat([part.bias for part in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.output.weight,
        out_proj_bias=attention.output.bias,
        key_padding_mask=None if mask is None else ~mask,
    )
    return found.transpose(0, 1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_cross_attention_is_its_formula(heads: int) -> None:
    attention = CrossAttention(width=WIDTH, heads=heads)
    states, keys = noise(2, 3, WIDTH), noise(2, 7, WIDTH)
    size = WIDTH // heads
    expected = torch.zeros(2, 3, WIDTH)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        query, key, value = attention.query(states), attention.key(keys), attention.value(keys)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
        expected[..., part] = logits.softmax(-1) @ value[..., part]
    torch.testing.assert_close(attention(states, keys), attention.output(expected))
    reference = multi_head_attention(attention, states, keys, heads=heads, key=attention.key)
    torch.testing.assert_close(attention(states, keys), reference)


def test_a_single_query_attends_as_any_other() -> None:
    """Whatever the bias of its keys' projection is, which it does without."""
    attention = SingleQueryAttention(width=WIDTH)
    state, keys = noise(2, 3, WIDTH), (noise(2, 3, 5, WIDTH), noise(2, 3, 5, WIDTH) + 1)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, :, 3:], mask[1, 2, 1:] = False, False
    key = nn.Linear(WIDTH, WIDTH)
    key.weight = nn.Parameter(attention.key.weight.T)
    reference = multi_head_attention(
        attention,
        state.flatten(0, 1).unsqueeze(1),
        torch.cat(keys, -2).flatten(0, 1),
        heads=1,
        key=key,
        mask=torch.cat([mask, mask], -1).flatten(0, 1),
    )
    torch.testing.assert_close(attention(state, keys, mask).flatten(0, 1), reference.squeeze(1))
    for part in keys:
        part[~mask] = 1e3
    torch.testing.assert_close(attention(state, keys, mask).flatten(0, 1), reference.squeeze(1))


def test_label_attention_is_its_formula() -> None:
    attention = LabelAttention(width=WIDTH)
    states = noise(2, 3, 4, WIDTH)
    assert attention.labels.shape == (2, WIDTH)
    weights = torch.einsum("pkld,nd->pkln", states, attention.labels).softmax(-1)
    expected = states + torch.einsum("pkln,nd->pkld", weights, attention.labels)
    torch.testing.assert_close(attention(states), expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_batch_without_a_picture_attends_to_nothing(device: str) -> None:
    """On a GPU in bf16 torch's own kernel answers None, and every post of such a batch ended in an error."""
    attention = CrossAttention(width=WIDTH, heads=2).to(device)
    with torch.autocast(device, torch.bfloat16):
        found = attention(torch.zeros(0, 3, WIDTH, device=device), torch.zeros(0, 7, WIDTH, device=device))
    assert found.shape == (0, 3, WIDTH)


def test_every_projection_has_a_gradient_without_any_picture() -> None:
    """Without, a data-parallel training hung for ever when one worker's share of a batch had no picture."""
    attention = CrossAttention(width=8, heads=2)
    attention(torch.zeros(0, 3, 8), torch.zeros(0, 4, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())
