from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mnerqg.boxes import STRIDES, Anchors
from mnerqg.model.heads import BinaryHead, GroundingHead, MatchHead
from tests.builders import SIDE, anchors

WIDTH = 8


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("prior", [0.0, -4.0])
def test_binary_head_begins_at_its_prior(prior: float) -> None:
    head = BinaryHead(width=WIDTH, prior=prior)
    logits = head(torch.zeros(2, 3, WIDTH))
    assert logits.shape == (2, 3, 2)
    torch.testing.assert_close(logits[..., 1] - logits[..., 0], torch.full((2, 3), prior))


@pytest.mark.parametrize("hidden", [None, 5])
def test_the_match_head_is_its_plain_form(hidden: int | None) -> None:
    head = MatchHead(width=WIDTH, hidden=hidden)
    start, end = noise(2, 3, 4, WIDTH), noise(2, 3, 4, WIDTH) + 1
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4), torch.arange(4))
    found = head(start, end).at(every)
    weight = torch.cat([head.start.weight, head.end.weight], 1)  # W_m [hidden or 1, 2D]
    for logit, (p, k, i, j) in zip(found, every.tolist(), strict=True):
        plain = weight @ torch.cat([start[p, k, i], end[p, k, j]]) + head.start.bias
        if head.hidden is not None:
            plain = head.hidden(F.gelu(plain))
        torch.testing.assert_close(logit, plain.squeeze())


@pytest.mark.parametrize("hidden", [None, 5])
def test_no_pairs(hidden: int | None) -> None:
    head = MatchHead(width=WIDTH, hidden=hidden)
    logits = head(noise(1, 1, 4, WIDTH), noise(1, 1, 4, WIDTH))
    assert logits.at(torch.zeros(0, 4, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("hidden", [None, 5])
def test_pairs_of_bf16_shares(hidden: int | None) -> None:
    head = MatchHead(width=WIDTH, hidden=hidden)
    logits = head(noise(1, 1, 4, WIDTH), noise(1, 1, 4, WIDTH))
    pairs = torch.tensor([[0, 0, 1, 2]])
    exact = logits.at(pairs)
    rough = replace(
        logits, start_share=logits.start_share.bfloat16(), end_share=logits.end_share.bfloat16()
    ).at(pairs)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)


def grounding() -> tuple[GroundingHead, tuple[torch.Tensor, ...], torch.Tensor]:
    torch.manual_seed(0)
    head = GroundingHead(width=WIDTH, anchors_per_scale=3)
    maps = tuple(noise(3, WIDTH, SIDE // stride, SIDE // stride) for stride in STRIDES)
    return head, maps, noise(3, 4, WIDTH)


@pytest.mark.parametrize("training", [True, False])
def test_the_split_convolution_is_the_one_over_the_concatenation(training: bool) -> None:
    head, maps, queries = grounding()
    head.train(training)
    found = head(maps, queries, torch.tensor([0, 1, 2]))
    scales = []
    for scale, grid in enumerate(maps):
        side = grid.shape[-1]
        seen = F.normalize(grid, dim=1)[:, None].expand(3, 4, WIDTH, side, side)
        asked = F.normalize(queries, dim=-1)[..., None, None].expand(3, 4, WIDTH, side, side)
        both = torch.cat([seen, asked], 2).flatten(0, 1)  # [P·K, 2D, R, R]
        weight = torch.cat([head.visual[scale].weight, head.textual[scale].weight[..., None, None]], 1)
        norm = torch.nn.BatchNorm2d(WIDTH).train(training)
        raw = head.outputs[scale](F.relu(norm(F.conv2d(both, weight))))
        scales.append(raw.reshape(3, 4, 3, 5, side, side).permute(0, 1, 2, 4, 5, 3).reshape(3, 4, -1, 5))
    torch.testing.assert_close(found, torch.cat(scales, 2), atol=1e-5, rtol=1e-5)


def test_candidates_are_ordered_as_the_anchors() -> None:
    """The head's answer for one anchor and cell stands where `Anchors` says."""
    head, maps, queries = grounding()
    head.eval()
    frame: Anchors = anchors()
    for scale, anchor, row, column in ((0, 1, 1, 0), (1, 2, 3, 1), (2, 0, 7, 4)):
        grids = [torch.zeros_like(grid) for grid in maps]
        grids[scale][0, :, row, column] = 1.0
        with torch.no_grad():
            head.outputs[scale].weight.view(3, 5, WIDTH)[anchor, 4] = 1.0
        empty = head(tuple(torch.zeros_like(grid) for grid in maps), queries, torch.tensor([0, 1, 2]))
        lit = head(tuple(grids), queries, torch.tensor([0, 1, 2]))
        changed = ((lit - empty)[0, 0, :, 4].abs() > 1e-6).nonzero().flatten().tolist()
        assert frame.candidate_index(3 * scale + anchor, row, column) in changed
        assert set(changed) <= {frame.candidate_index(3 * scale + a, row, column) for a in range(3)}


@pytest.mark.parametrize("training", [True, False])
def test_posts_without_a_picture_have_zeros(training: bool) -> None:
    head, maps, queries = grounding()
    head.train(training)
    found = head(tuple(grid[1:] for grid in maps), queries, torch.tensor([0, 2]))
    assert found.shape == (3, 4, anchors().candidates, 5)
    assert (found[1] == 0).all()
    again, _, _ = grounding()
    again.train(training)
    rest = again(tuple(grid[1:] for grid in maps), queries[[0, 2]], torch.tensor([0, 1]))
    torch.testing.assert_close(found[[0, 2]], rest)


def test_no_pictures_at_all_leave_the_statistics() -> None:
    head, maps, queries = grounding()
    found = head.train()(tuple(grid[:0] for grid in maps), queries, torch.zeros(0, dtype=torch.long))
    assert (found == 0).all()
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    for norm in head.norms:
        assert torch.equal(norm.running_mean, torch.zeros(WIDTH))
        assert torch.equal(norm.running_var, torch.ones(WIDTH))


def test_folded_norms_give_the_same_boxes() -> None:
    head, maps, queries = grounding()
    head.eval()
    for norm in head.norms:
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.1, 2.0)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    rows = torch.tensor([0, 1, 2])
    before = head(maps, queries, rows)
    head.fold_norms()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in head.modules())
    torch.testing.assert_close(head(maps, queries, rows), before, atol=1e-5, rtol=1e-5)


def test_lengths_of_maps_and_queries_do_not_matter() -> None:
    head, maps, queries = grounding()
    head.eval()
    rows = torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        head(tuple(grid * 7 for grid in maps), queries * 3, rows),
        head(maps, queries, rows),
        atol=1e-5,
        rtol=1e-5,
    )
