"""GuidedMix around every SMP architecture: one step on images that no stride divides."""

import pytest
import torch
from test_network import ARCHITECTURES, smp_model
from tiny_nets import seeded

from gmix import GuidedMixNet
from gmix.methods import GuidedMix


@pytest.mark.parametrize("variant", ["default", "paper", "official"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_teaches_every_architecture(architecture: str, variant: str) -> None:
    net = GuidedMixNet(smp_model(architecture))
    method = GuidedMix(net, variant=variant)  # type: ignore[arg-type]
    g = seeded(0)
    x_l, x_u = torch.randn(2, 3, 70, 90, generator=g), torch.randn(3, 3, 70, 90, generator=g)
    y = torch.randint(3, (2, 70, 90), generator=g)

    method.remember(list(zip(x_l, y, strict=True)))
    losses = method(x_l, y, x_u, progress=1.0, generator=g)
    losses["total"].backward()

    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    for part in (net.model.encoder, net.model.decoder, net.model.segmentation_head):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    assert (method.classifier is not None) == (variant == "paper")
    if method.reference is not None:
        # Only the labeled pixels are remembered, not the padding the encoder needed.
        held = method.reference.values[method.reference.owners >= 0]
        assert len(held) and held.sum(1).min() > 0
        assert held.sum(1).max() <= 1 + 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_guidance_has_the_images_size(architecture: str) -> None:
    method = GuidedMix(GuidedMixNet(smp_model(architecture)), direct=0.5)
    g = seeded(1)
    x_l, x_u = torch.randn(2, 3, 70, 90, generator=g), torch.randn(3, 3, 70, 90, generator=g)
    method.eval()
    guidance = method.guide(x_l, torch.randint(3, (2, 70, 90), generator=g), x_u, g)
    for probs in (guidance.direct, guidance.mix.predicted, guidance.mix.decoupled, guidance.pseudo):
        assert probs.shape == (3, 3, 70, 90)
        torch.testing.assert_close(probs.sum(1), torch.ones(3, 70, 90))
