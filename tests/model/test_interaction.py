import torch
from torch import nn

from mnerqg.model.interaction import CrossModality, ExistenceAware

WIDTH = 8


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def cross_modality() -> CrossModality:
    module = CrossModality(width=WIDTH, heads=2)
    nn.init.normal_(module.feed_forward[-1].weight)
    return module.eval()


def maps(pictures: int) -> tuple[torch.Tensor, ...]:
    return tuple(noise(pictures, WIDTH, side, side) for side in (2, 4, 8))


def test_training_begins_from_the_text_alone() -> None:
    text = noise(2, 4, 5, WIDTH)
    module = CrossModality(width=WIDTH, heads=2)
    torch.testing.assert_close(module(text, maps(2), torch.tensor([0, 1])), text)


def test_h_u_is_its_formula() -> None:
    module, text, grids = cross_modality(), noise(2, 4, 5, WIDTH), maps(2)
    fused = module(text, grids, torch.tensor([0, 1]))
    for p, row in ((0, 0), (1, 1)):
        for k in range(4):
            states = text[p, k][None]
            attended = [
                attention(states, grid[row].flatten(1).T[None])
                for attention, grid in zip(module.scales, grids, strict=True)
            ]
            visual = torch.stack(attended).mean(0)[0]
            expected = text[p, k] + module.feed_forward(torch.cat([visual, text[p, k]], -1))
            torch.testing.assert_close(fused[p, k], expected)


def test_without_a_picture_h_a_is_zero() -> None:
    module, text = cross_modality(), noise(3, 4, 5, WIDTH)
    fused = module(text, maps(1), torch.tensor([1]))
    for p in (0, 2):
        nothing = torch.zeros_like(text[p])
        torch.testing.assert_close(fused[p], text[p] + module.feed_forward(torch.cat([nothing, text[p]], -1)))
    torch.testing.assert_close(fused[1:2], module(text[1:2], maps(1), torch.tensor([0])))


def test_a_batch_wholly_without_pictures() -> None:
    module, text = cross_modality(), noise(2, 4, 5, WIDTH).requires_grad_()
    module(text, maps(0), torch.zeros(0, dtype=torch.long)).sum().backward()
    assert text.grad is not None
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_existence_aware_is_its_formula() -> None:
    module = ExistenceAware(width=WIDTH)
    fused, existence = noise(2, 3, 5, WIDTH), noise(2, 3, WIDTH)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, :, 3:] = False
    start, end, updated = module(fused, existence, mask)
    labelled = module.existence_labels(existence)
    # eq. 2 in full: one key, whose softmax is 1 whatever the query.
    query, key = noise(2, 3, 5, WIDTH), labelled.unsqueeze(-2)
    weights = (query @ key.transpose(-1, -2)).softmax(-1)
    h_s, h_e = module.start_labels(fused), module.end_labels(fused)
    torch.testing.assert_close(start, module.start_norm(h_s + weights @ module.start_value(key)))
    torch.testing.assert_close(end, module.end_norm(h_e + weights @ module.end_value(key)))
    for p in range(2):
        for k in range(3):
            seen = [part[p, k][mask[p, k]] for part in (h_s, h_e)]
            everywhere = torch.ones(len(seen[0]), dtype=torch.bool)
            update = module.existence_attention(labelled[p, k], seen, everywhere)
            torch.testing.assert_close(updated[p, k], module.existence_norm(labelled[p, k] + update))


def test_padding_never_changes_results() -> None:
    module = ExistenceAware(width=WIDTH)
    fused, existence = noise(2, 3, 6, WIDTH), noise(2, 3, WIDTH)
    mask = torch.zeros(2, 3, 6, dtype=torch.bool)
    mask[..., :4] = True
    short = module(fused[..., :4, :], existence, mask[..., :4])
    fused[..., 4:, :] = 1e3
    start, end, updated = module(fused, existence, mask)
    torch.testing.assert_close(start[..., :4, :], short[0])
    torch.testing.assert_close(end[..., :4, :], short[1])
    torch.testing.assert_close(updated, short[2])
