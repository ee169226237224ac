"""CCT: the auxiliary decoders and what disturbs their features."""

import copy
import math
from typing import Any

import naive
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, best, error, full, labeled_entropy, ramp
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Generator, Tensor, nn

from gmix.methods import CCT
from gmix.methods import cct as cct_file
from gmix.methods.cct import DECODERS, auxiliary_decoder, box_in, disturb


class TestCCT(MethodTester):
    name = "cct"
    options = {"unsupervised": 0.7}
    ramps = [(0.1, 30.0)]
    needs_progress = True
    brings = "decoders."
    learners = {"unsupervised": ("net.model.encoder", "decoders.")}
    easy = {"unsupervised": 3.0}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        features = method.net.encode(torch.cat([x_l, x_u]))
        logits = method.net.decode(features, (32, 24))
        target, z = full(logits[3:]), features[-1][3:]
        objects = torch.zeros(4, 1, 4, 3)
        labels = best(target)[0]
        for i, _, r, c in np.ndindex(*objects.shape):
            objects[i, 0, r, c] = float(labels[i, 8 * r, 8 * c] > 0)
        assert 0.1 < objects.mean() < 0.9
        errors = []
        for kind, decoder in zip(DECODERS, method.decoders, strict=True):
            factor, added = naive_disturb(kind, z.detach(), objects, decoder, g)
            errors.append(error(decoder(z * factor + added), target, valid))
        assert len(errors) == 7
        supervised = labeled_entropy(logits[:3], y)
        unsupervised = sum(errors) / 7 / target.shape[1]
        total = supervised + 0.7 * ramp(0.05, 0.1) * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}

    def test_cct_takes_the_mean_over_any_number_of_decoders(self) -> None:
        method: Any = self.midway(decoders={"objects": 2, "context": 1})
        assert method.kinds == ["objects", "objects", "context"]
        x_l, y, x_u = batch_of()
        with torch.no_grad():
            losses = copy.deepcopy(method)(x_l, y, x_u, progress=1.0)
            features = method.net.encode(torch.cat([x_l, x_u]))
            target = full(method.net.decode(features, (32, 24))[3:])
            objects = (best(target)[0][:, None, ::8, ::8] > 0).float()
            every, z = torch.ones(4, 32, 24, dtype=torch.bool), features[-1][3:]
            views = [z * (1 - objects), z * (1 - objects), z * objects]
            errors = [
                error(decoder(view), target, every)
                for decoder, view in zip(method.decoders, views, strict=True)
            ]
        torch.testing.assert_close(losses["unsupervised"].double(), sum(errors) / 9)

    def test_objects_are_where_the_images_have_them_when_no_stride_divides(
        self,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Features lie on a grid over the padded image."""
        seen = []

        def spy(kind: str, z: Tensor, objects: Tensor, *rest: Any) -> Tensor:
            seen.append(objects)
            return disturb(kind, z, objects, *rest)

        monkeypatch.setattr(cct_file, "disturb", spy)
        method = self.make(decoders={"context": 1})
        x_l, y, x_u = (
            v[..., :33] for v in tiny_batch(size=40)
        )  # padded to 40 x 40: 5 x 5 features
        with torch.no_grad():
            method(x_l, y, x_u, progress=1.0)
            labels = best(full(method.net(torch.cat([x_l, x_u]))[3:]))[0]
        assert seen[0].shape == (4, 1, 5, 5)
        for i, r, c in np.ndindex(4, 5, 5):
            assert seen[0][i, 0, r, c] == (labels[i, 8 * r, 8 * c] > 0), (i, r, c)


def test_a_method_has_as_many_decoders_as_the_paper() -> None:
    method: Any = CCT(tiny_net())
    assert len(method.decoders) == 30 and method.kinds.count("adversarial") == 2


def naive_disturb(
    kind: str, z: Tensor, objects: Tensor, decoder: nn.Module, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the features are multiplied with and what is added: one number at a time."""
    n, channels, h, w = z.shape
    factor, added = np.ones(z.shape), np.zeros(z.shape)
    values, there = z.double().numpy(), objects.numpy()
    if kind == "adversarial":
        draw = torch.rand(z.shape, generator=g).double() - 0.5
        added = naive.adversarial(z, decoder, draw).numpy()
    elif kind == "dropout":
        u = torch.rand(n, channels, generator=g).numpy()
        for i, k in np.ndindex(n, channels):
            factor[i, k] = 0 if u[i, k] < 0.5 else 2
    elif kind == "noise":
        u = torch.rand(channels, h, w, generator=g).double().numpy()
        for i in range(n):
            for k, r, c in np.ndindex(channels, h, w):
                factor[i, k, r, c] = 0.7 + 0.6 * u[k, r, c]
    elif kind == "feature_drop":
        share = 0.7 + 0.2 * float(torch.rand((), generator=g))
        for i in range(n):
            means = [values[i, :, r, c].sum() / channels for r, c in np.ndindex(h, w)]
            for (r, c), mean in zip(np.ndindex(h, w), means, strict=True):
                factor[i, :, r, c] = mean < share * max(means)
    elif kind == "cutout":
        u = [torch.rand(n, generator=g).double().tolist() for _ in range(2)]
        for i in range(n):
            rows = [r for r in range(h) if there[i, 0, r].any()]
            cols = [c for c in range(w) if there[i, 0, :, c].any()]
            if rows:
                (top, height), (left, width) = (
                    (
                        min(line) + math.floor(0.6 * draw[i] * (max(line) + 1 - min(line))),
                        math.ceil(4 * (max(line) + 1 - min(line)) / 10),
                    )
                    for line, draw in zip((rows, cols), u, strict=True)
                )
                factor[i, :, top : top + height, left : left + width] = 0
    else:
        for i, k, r, c in np.ndindex(*z.shape):
            factor[i, k, r, c] = there[i, 0, r, c] == (kind == "context")
    return torch.from_numpy(factor).float(), torch.from_numpy(added).float()


def features_and_objects(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    z = torch.randn(5, 12, 7, 9, generator=g).relu()
    objects = (torch.rand(5, 1, 7, 9, generator=g) < 0.1).float()
    objects[0] = 0
    objects[1] = 1
    return z, objects


def a_decoder(channels: int = 12, classes: int = 3, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return auxiliary_decoder(channels, classes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", DECODERS)
def test_every_disturbance_is_this_loop(kind: str, seed: int) -> None:
    z, objects = features_and_objects(seed)
    before = z.clone(), objects.clone()
    decoder = a_decoder()
    out = disturb(kind, z, objects, decoder, seeded(seed))
    factor, added = naive_disturb(kind, z, objects, decoder, seeded(seed))
    torch.testing.assert_close(out, z * factor + added, atol=1e-4, rtol=1e-4)
    assert not torch.equal(out, z)
    assert torch.equal(before[0], z) and torch.equal(before[1], objects)
    assert all(p.grad is None for p in decoder.parameters())


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.25, 0.4, 0.5]),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_boxes_lie_in_the_objects_bounding_box(seed: int, share: float, h: int, w: int) -> None:
    g = seeded(seed)
    objects = (torch.rand(6, 1, h, w, generator=g) < 3 * torch.rand(1, generator=g) / h / w).float()
    boxes = box_in(objects, share, g)
    assert boxes.shape == objects.shape and set(boxes.unique().tolist()) <= {0.0, 1.0}
    for there, box in zip(objects[:, 0] > 0, boxes[:, 0] > 0, strict=True):
        if not there.any():
            assert not box.any()
            continue
        rows, cols = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & cols[None])
        for line, place in ((rows, there.any(1)), (cols, there.any(0))):
            inside, allowed = line.nonzero().flatten(), place.nonzero().flatten()
            low, high = int(allowed[0]), int(allowed[-1])
            assert low <= inside[0] and inside[-1] <= high
            assert len(inside) == inside[-1] - inside[0] + 1  # without a gap
            assert len(inside) == math.ceil(round(share * (high + 1 - low), 6))


def test_an_auxiliary_decoder_starts_without_a_checkerboard() -> None:
    for seed in range(5):
        out = a_decoder(6, 3, seed)(torch.randn(2, 6, 4, 5, generator=seeded(seed)))
        assert out.shape == (2, 3, 32, 40)
        blocks = out.view(2, 3, 4, 8, 5, 8)  # what comes of one position of the features
        torch.testing.assert_close(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


@pytest.mark.parametrize(
    ("decoders", "words"),
    [
        ({"noise": 1, "nonsense": 2}, "CCT has no decoder 'nonsense': choose from ['adversarial',"),
        ({}, "at least one auxiliary decoder"),
        ({"noise": 0, "dropout": 0}, "at least one auxiliary decoder"),
    ],
)
def test_decoders_that_cannot_be_are_refused_in_one_sentence(
    decoders: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError) as refused:
        CCT(tiny_net(), decoders=decoders)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_cct_has_no_teacher_and_no_memory() -> None:
    method = CCT(tiny_net())
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.on_step_start(*batch_of()[:2])
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
