"""MITrans: carry knowledge across positions with attention, then to the next finer map.

The blocks need torch only, so they fit any decoder; `gmix.GuidedMixNet` and `gmix.GuidedMixUnet`
place them in whole networks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MITransBlock", "NonLocalBlock", "PixelShuffleBlock", "icnr_", "non_local"]


def non_local(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Attend from every position to all positions of the same image (embedded Gaussian, Eq. 4-5).

    $$ z_i = \frac{1}{C_i} \sum_j \exp(q_i \cdot k_j / \sqrt{d})\, v_j, \qquad
       C_i = \sum_j \exp(q_i \cdot k_j / \sqrt{d}) $$

    The softmax over the key positions *is* the normaliser; there is no other division. The constant
    `sqrt(d)` could as well be part of the weights that compute `query`; it keeps the softmax from
    saturating when `d` is large. No (H*W) x (H*W) matrix is kept in memory.

    Args:
        query: `(N, D, H, W)` features of the positions that attend.
        key: `(N, D, H, W)` features that the queries are compared with.
        value: `(N, 2*D, H, W)` features that are averaged.

    Returns:
        `(N, 2*D, H, W)`, at each position a convex combination of all values of that image.

    Raises:
        ValueError: If `value` is not `(N, 2*D, H, W)`, or `key` and `query` have different shapes.

    Reference:
        Wang et al., "Non-local Neural Networks", CVPR 2018.

    Examples:
        >>> import torch
        >>> value = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> equal = torch.ones(1, 1, 2, 2)  # all positions alike: the plain mean
        >>> non_local(equal, equal, value)[0, :, 0, 0]
        tensor([1.5000, 5.5000])
    """
    n, d, h, w = query.shape
    if key.shape != query.shape or value.shape != (n, 2 * d, h, w):
        raise ValueError(
            "`query`, `key` and `value` must have shapes (N, D, H, W), (N, D, H, W) and "
            f"(N, 2*D, H, W), got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )

    # The kernels whose memory is linear in H*W need dense channels and value heads as wide as the key
    # heads: the two halves of the value become two heads that share one attention map.
    def heads(x: Tensor) -> Tensor:
        return x.reshape(n, -1, d, h * w).mT.contiguous().expand(n, 2, h * w, d)

    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    return mixed.mT.reshape(n, 2 * d, h, w)


def icnr_(weight: Tensor, scale: int = 2) -> Tensor:
    """Fill a sub-pixel convolution's weight in place so that it starts as nearest upsampling.

    All `scale**2` kernels that feed one output channel of `nn.PixelShuffle` start equal, so the
    first upsampled map has no checkerboard pattern.

    Args:
        weight: `(C * scale**2, ...)` weight of the convolution before `nn.PixelShuffle(scale)`.
        scale: Upsampling factor.

    Returns:
        `weight` itself.

    Raises:
        ValueError: If the number of kernels is not a multiple of `scale**2`.

    Reference:
        Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017.

    Examples:
        >>> import torch
        >>> weight = icnr_(torch.empty(8, 3, 1, 1), scale=2)
        >>> bool((weight[:4] == weight[0]).all() and (weight[4:] == weight[4]).all())
        True
    """
    kernels = weight.shape[0]
    if kernels % scale**2:
        raise ValueError(
            f"`weight` must have a multiple of scale**2 = {scale**2} kernels, got {kernels}"
        )
    with torch.no_grad():
        kernel = nn.init.kaiming_normal_(torch.empty_like(weight[:: scale**2]))
        return weight.copy_(kernel.repeat_interleave(scale**2, dim=0))


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class NonLocalBlock(nn.Module):
    r"""Apply non-local attention with a residual connection, the core of MITrans (Eq. 4-5).

    $$ y = x + W_{out}\, \mathrm{non\_local}(W_q x, W_k x, W_v x) $$

    Queries and keys have C/2 channels, values C; all four maps are 1x1 convolutions. `W_out` starts
    at zero: inserting the block into a trained network changes nothing at step 0 (and the other
    three maps get their first gradient at step 1).

    Args:
        channels: C, channels of the input and of the output.

    Shape:
        - Input, output: `(N, C, H, W)`, any H and W; memory is linear in H*W.

    Reference:
        Wang et al., "Non-local Neural Networks", CVPR 2018; GuidedMix-Net, Eq. 4-5.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(2, 8, 4, 6)
        >>> block = NonLocalBlock(8)
        >>> torch.equal(block(x), x)  # at initialisation
        True
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = (channels + 1) // 2
        self.query = nn.Conv2d(channels, half, 1)
        self.key = nn.Conv2d(channels, half, 1)
        self.value = nn.Conv2d(channels, 2 * half, 1)
        self.out = nn.Conv2d(2 * half, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set `W_out` to zero, so that the block has no effect; leave the other maps unchanged."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add the attention update to `x`: `(N, C, H, W)` -> `(N, C, H, W)`."""
        update: Tensor = self.out(non_local(self.query(x), self.key(x), self.value(x)))
        return x + update


class PixelShuffleBlock(nn.Module):
    """Upsample by 2 with a sub-pixel convolution, then fuse with the finer map.

    3x3 convolution, PixelShuffle, concatenation with `skip`, two 3x3 convolutions with BatchNorm
    and ReLU. The sub-pixel convolution starts as nearest upsampling (`icnr_`).

    Args:
        in_channels: Channels of the coarse map `x`.
        skip_channels: Channels of the finer map `skip`; 0 where there is none.
        out_channels: Channels of the result.

    Shape:
        - `x`: `(N, in, H, W)`; `skip`: `(N, skip, 2H, 2W)` or None.
        - Output: `(N, out, 2H, 2W)`.

    Raises:
        ValueError: If `skip` is missing, has another number of channels, or is not twice the size of `x`.

    Examples:
        >>> import torch
        >>> block = PixelShuffleBlock(16, 8, 4)
        >>> block(torch.zeros(2, 16, 3, 5), torch.zeros(2, 8, 6, 10)).shape
        torch.Size([2, 4, 6, 10])
    """

    __call__: Callable[..., Tensor]

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip_channels = skip_channels
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.fuse = nn.Sequential(
            _conv(out_channels + skip_channels, out_channels), _conv(out_channels, out_channels)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the upsampling as nearest; leave the fusing convolutions unchanged."""
        icnr_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Upsample `x` and fuse it with `skip`: `(N, in, H, W)` and `(N, skip, 2H, 2W)` -> `(N, out, 2H, 2W)`."""
        n, _, h, w = x.shape
        expected = (n, self.skip_channels, 2 * h, 2 * w)
        if skip is None and self.skip_channels == 0:
            skip = x.new_empty(expected)
        if skip is None or skip.shape != expected:
            got = "None" if skip is None else tuple(skip.shape)
            raise ValueError(
                f"`skip` must be twice the size of `x`, shape {expected}, got {got}: "
                "pass the encoder's map of the next finer stride"
            )
        upsampled: Tensor = self.shuffle(self.expand(x))
        fused: Tensor = self.fuse(torch.cat([upsampled, skip], dim=1))
        return fused


class MITransBlock(PixelShuffleBlock):
    """Transfer mutual information (Fig. 4): attention on v_j, then PixelShuffle to v_{j-1}.

    The coarse map goes through a `NonLocalBlock`, so that the unlabeled content of a mixed image can
    use the labeled content around it. The result is upsampled and fused with the encoder's next
    finer map. Use it where maps are small (stride >= 8): attention time grows with (H*W)**2.

    Args:
        in_channels: Channels of the coarse map v_j.
        skip_channels: Channels of the next finer map v_{j-1}; 0 where there is none.
        out_channels: Channels of the result.

    Shape:
        - v_j: `(N, in, H, W)`; v_{j-1}: `(N, skip, 2H, 2W)`.
        - Output: `(N, out, 2H, 2W)`.

    Raises:
        ValueError: If v_{j-1} is missing, has another number of channels, or is not twice the size of v_j.

    Reference:
        Tu et al., "GuidedMix-Net", Sec. 3.1.2 and Fig. 4; Shi et al., "Real-Time Single Image and
        Video Super-Resolution Using an Efficient Sub-Pixel CNN", CVPR 2016.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> block = MITransBlock(in_channels=32, skip_channels=16, out_channels=8)
        >>> block(torch.randn(2, 32, 4, 4), torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, skip_channels, out_channels)
        self.attention = NonLocalBlock(in_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Attend, upsample and fuse: v_j `(N, in, H, W)`, v_{j-1} `(N, skip, 2H, 2W)` -> `(N, out, 2H, 2W)`."""
        return super().forward(self.attention(x), skip)
