"""MITrans blocks against loops over positions, and what must hold for any input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gmix.nn.mitrans import MITransBlock, NonLocalBlock, PixelShuffleBlock, icnr_, non_local


def naive_non_local(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Embedded Gaussian, one position and one pair at a time."""
    n, d, h, w = q.shape
    z = torch.zeros_like(v)
    positions = [(r, c) for r in range(h) for c in range(w)]
    for b in range(n):
        for i in positions:
            f = [
                math.exp(sum((q[b, m][i] * k[b, m][j]).item() for m in range(d)) / math.sqrt(d))
                for j in positions
            ]
            for c in range(v.shape[1]):
                z[b, c][i] = sum(
                    f_j * v[b, c][j].item() for f_j, j in zip(f, positions, strict=True)
                ) / sum(f)
    return z


def trained(block: nn.Module) -> nn.Module:
    """A block whose output projection is no longer zero."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def test_non_local_equals_the_loop_over_all_pairs() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 2, 4, dtype=torch.float64)
    v = torch.randn(2, 6, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(non_local(q, k, v), naive_non_local(q, k, v))


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_non_local_block_equals_matrix_products(channels: int) -> None:
    torch.manual_seed(0)
    block = trained(NonLocalBlock(channels).double())
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)

    def linear(conv: nn.Conv2d, rows: Tensor) -> Tensor:
        return rows @ conv.weight[:, :, 0, 0].T + conv.bias

    expected = []
    for image in x:
        rows = image.flatten(1).T  # positions x channels
        q, k, v = (linear(c, rows) for c in (block.query, block.key, block.value))
        attention = torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1)  # over key positions
        expected.append(rows + linear(block.out, attention @ v))
    torch.testing.assert_close(block(x), torch.stack(expected).mT.reshape(x.shape))


def test_channels_of_queries_keys_and_values() -> None:
    block = NonLocalBlock(8)
    assert [c.out_channels for c in (block.query, block.key, block.value)] == [4, 4, 8]


def test_inserting_the_block_changes_nothing_and_leaves_its_input_alone() -> None:
    x = torch.randn(2, 6, 3, 3)
    before = x.clone()
    assert torch.equal(NonLocalBlock(6)(x), x)
    assert torch.equal(x, before)


def test_no_matrix_of_all_pairs_is_kept_for_backward() -> None:
    saved: list[int] = []

    def note(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    positions = 40 * 40
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        trained(NonLocalBlock(8))(torch.randn(1, 8, 40, 40, requires_grad=True))
    assert saved
    assert max(saved) < positions**2 / 10


def test_icnr_upsampling_starts_as_nearest() -> None:
    torch.manual_seed(0)
    block = PixelShuffleBlock(5, 2, 3)
    x = torch.randn(2, 5, 4, 3)
    kernel = F.conv2d(x, block.expand.weight[::4], padding=1)  # one of each four equal kernels
    upsampled = block.shuffle(block.expand(x))
    torch.testing.assert_close(upsampled, F.interpolate(kernel, scale_factor=2, mode="nearest"))
    assert upsampled.std() > 0.1
    distinct = block.expand.weight[::4].flatten(1)
    assert not torch.allclose(distinct[0], distinct[1])  # output channels differ
    drawn = icnr_(torch.empty(4 * 64, 32, 3, 3))[::4].std().item()
    assert drawn == pytest.approx(math.sqrt(2 / (32 * 3 * 3)), rel=0.03)  # He et al., 2015


def test_icnr_refuses_a_kernel_count_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"multiple of scale\*\*2 = 9 kernels, got 8"):
        icnr_(torch.empty(8, 1, 1, 1), scale=3)
    with pytest.raises(ValueError, match=r"multiple of scale\*\*2 = 4 kernels, got 6"):
        icnr_(torch.empty(6, 1, 1, 1))


@settings(max_examples=10)
@given(
    st.sampled_from([MITransBlock, PixelShuffleBlock]),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_blocks_end_at_the_skips_size(kind: type, c: int, skip: int, h: int, w: int) -> None:
    block = kind(c, skip, 3)
    out = block(torch.randn(2, c, h, w), torch.randn(2, skip, 2 * h, 2 * w))
    assert out.shape == (2, 3, 2 * h, 2 * w)
    if skip == 0:
        assert torch.equal(
            block(x := torch.randn(2, c, h, w)), block(x, x.new_empty(2, 0, 2 * h, 2 * w))
        )


def test_mitrans_block_is_attention_then_upsample_then_fuse() -> None:
    torch.manual_seed(0)
    block = MITransBlock(4, 2, 3).eval()
    trained(block.attention)
    x, skip = torch.randn(2, 4, 3, 3), torch.randn(2, 2, 6, 6)
    upsampled = F.pixel_shuffle(block.expand(block.attention(x)), 2)
    torch.testing.assert_close(block(x, skip), block.fuse(torch.cat([upsampled, skip], 1)))


@pytest.mark.parametrize("skip", [None, (2, 2, 6, 7), (2, 3, 6, 6), (1, 2, 6, 6)])
def test_a_wrong_skip_is_named(skip: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2, 6, 6\), got (None|\()"):
        MITransBlock(4, 2, 3)(torch.zeros(2, 4, 3, 3), None if skip is None else torch.zeros(skip))


def test_wrong_attention_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 2, 3, 3\), \(1, 2, 3, 3\), \(1, 3, 3, 3\)"):
        non_local(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))


def test_every_parameter_learns_after_the_first_step() -> None:
    torch.manual_seed(0)
    block = MITransBlock(8, 4, 6)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):  # the zero output projection holds back queries, keys, values for one step
        optimizer.zero_grad()
        x, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
        (block(x, skip) * torch.randn(2, 6, 8, 8)).sum().backward()
        optimizer.step()
    # a key's bias adds the same number to all scores of a query: softmax does not see it
    silent = {
        n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6
    }
    assert silent <= {"attention.key.bias"}


def inputs(block: nn.Module, device: str = "cpu") -> list[Tensor]:
    x = torch.randn(2, 8, 4, 6, device=device)
    return [x] if isinstance(block, NonLocalBlock) else [x, torch.randn(2, 4, 8, 12, device=device)]


BLOCKS = [lambda: NonLocalBlock(8), lambda: MITransBlock(8, 4, 6)]


@pytest.mark.cuda
@pytest.mark.parametrize("make", BLOCKS)
def test_cuda_equals_cpu(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    block = trained(make()).eval()
    args = inputs(block)
    expected = block(*args)
    block.cuda()
    args = [a.cuda() for a in args]
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = block(*args)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cuda", dtype=dtype):
                block(*args).float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), expected, atol=1e-3, rtol=1e-3)
