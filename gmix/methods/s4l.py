"""S4L: say by how much an image is rotated, and segment rotated images as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.methods.method import Method, Step, inside_of
from gmix.nn.losses import check_weight
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss

__all__ = ["S4L"]

ANGLES = 4


class S4L(Method):
    r"""Learn, besides the masks, which of four rotations all images were given: self-supervision without pseudo masks.

    $$L = L_{sup} + w_m\,\mathrm{CE}(\hat y(R_a x_l), R_a y_l) + w\,\mathrm{CE}(h(f(R_a x)), a)$$

    $R_a$ rotates by $a$ times 90 degrees. $h$ is a linear layer on the pooled deepest features $f$; it is part of the
    method and not deployed. Labeled and unlabeled images have the same share of the last term, whatever their number.

    The paper, which is about ImageNet, passes all four rotations of each image through the network and learns each,
    with weights of 1. For segmentation, PixelSSL (by the authors of GCT) learns one rotated copy of each image, with
    both weights 0.1 on VOC: the defaults here. Chosen here:

    - the angle is drawn evenly among all four; PixelSSL has the image as it is, and one of the three others;
    - the head is that of the paper; PixelSSL's is a small network on the predicted logits;
    - images that are not square are cropped to a random square before they are rotated, and for all four angles alike.
      Padding them to a square would show the angle by where the padding lies.

    What is padded already can show it, too, if it is always on one side. The crops of `gmix train` are padded on random
    sides. Images of nothing but padding do not count.

    Args:
        net: The network to train.
        rotation: $w$.
        rotated: $w_m$. It is always cross-entropy.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `rotated`, `rotation` and `total`.

    Reference:
        Zhai, Oliver, Kolesnikov, Beyer, "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019
        (https://github.com/google-research/s4l); for segmentation https://github.com/ZHKKKe/PixelSSL, `ssl_s4l.py`.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = S4L(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['rotated', 'rotation', 'supervised', 'total']
    """

    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        rotation: float = 0.1,
        rotated: float = 0.1,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        check_weight("rotation", rotation)
        check_weight("rotated", rotated)
        self.weights = (rotation, rotated)
        self.require("embedding_dim")
        self.head = nn.Linear(net.embedding_dim, ANGLES, device=next(net.parameters()).device)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, that of rotated labeled images, and that of the angles."""
        x_labeled, y_labeled, x_unlabeled, _, _, generator = step
        n, (height, width) = len(x_labeled), x_labeled.shape[2:]
        x, side = torch.cat([x_labeled, x_unlabeled]), min(height, width)
        u = torch.rand(3, len(x), generator=generator, device=x.device)
        angle = (u[0] * ANGLES).long().clamp(max=ANGLES - 1)
        # Evenly among the places where the square fits.
        rooms = zip(u[1:], (height - side, width - side), strict=True)
        corner = torch.stack([(v * (room + 1)).long().clamp(max=room) for v, room in rooms])
        features = self.net.encode(rotate_squares(x, angle, corner, side))
        masks = rotate_squares(y_labeled[:, None], angle[:n], corner[:, :n], side)[:, 0]
        seen = rotate_squares(inside_of(step)[:, None], angle[n:], corner[:, n:], side)
        counted = seen.flatten(1).any(1)
        again = self.net.decode([f[:n] for f in features], (side, side))
        with torch.autocast(x.device.type, enabled=False):
            answers = self.head(self.net.pool(features).float())
            each = F.cross_entropy(answers, angle, reduction="none")
        unlabeled = (each[n:] * counted).sum() / counted.sum().clamp(min=1)
        losses = {
            "supervised": self.supervised(self.net(x_labeled), y_labeled),
            "rotated": G.cross_entropy(again, masks, ignore_index=self.ignore_index),
            "rotation": (each[:n].mean() + unlabeled) / 2,
        }
        total = losses["supervised"] + self.weights[0] * losses["rotation"]
        return {**losses, "total": total + self.weights[1] * losses["rotated"]}


def rotate_squares(x: Tensor, angle: Tensor, corner: Tensor, side: int) -> Tensor:
    """Cut a square out of each image, and rotate it counter-clockwise.

    Args:
        x: `(N, C, H, W)` images, masks, or any values of pixels.
        angle: `(N,)` int64 in 0 to 3, times 90 degrees.
        corner: `(2, N)` int64: row and column of the upper left pixel of each square.
        side: Height and width of the squares.

    Returns:
        `(N, C, side, side)`.

    Examples:
        >>> x = torch.tensor([[1, 2, 3], [4, 5, 6]]).view(1, 1, 2, 3)
        >>> rotate_squares(x, torch.tensor([1]), torch.tensor([[0], [1]]), 2)[0, 0]
        tensor([[3, 6],
                [2, 5]])
    """
    place = torch.arange(side, device=x.device)
    i, j = place[:, None].expand(side, side), place[None].expand(side, side)
    # Where the pixel (i, j) of the result comes from, for each angle.
    rows = torch.stack([i, j, side - 1 - i, side - 1 - j])[angle] + corner[0][:, None, None]
    columns = torch.stack([j, side - 1 - i, side - 1 - j, i])[angle] + corner[1][:, None, None]
    index = (rows * x.shape[3] + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view(*x.shape[:2], side, side)
