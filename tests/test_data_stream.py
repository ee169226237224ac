"""Batch t is a pure function of (seed, t), whatever the workers, restarts and other stream."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.data import (
    Batch,
    Sample,
    TwoStream,
    train_transform,
)

CROP = train_transform(crop=(12, 16))


def images(count: int, height: int = 14, width: int = 18) -> list[tv_tensors.Image]:
    generator = torch.Generator().manual_seed(count)
    shape = (3, height, width)
    return [
        tv_tensors.Image(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        for _ in range(count)
    ]


def samples(count: int) -> list[Sample]:
    return [
        Sample(image, tv_tensors.Mask(image[0].as_subclass(Tensor).long() % 5))
        for image in images(count)
    ]


def build(labeled: int = 5, unlabeled: int | None = 7, seed: int = 0, **kwargs: Any) -> TwoStream:
    others = None if unlabeled is None else images(unlabeled)
    settings = {"batch_labeled": 2, "batch_unlabeled": 3} | kwargs
    settings = {"labeled_transform": CROP, "unlabeled_transform": CROP} | settings
    return TwoStream(samples(labeled), others, seed=seed, **settings)


def load(stream: TwoStream, steps: range, workers: int = 0) -> list[Batch]:
    return list(DataLoader(stream, batch_size=None, sampler=steps, num_workers=workers))


def same(first: Batch, second: Batch) -> bool:
    return all(
        a is b is None or torch.equal(a, b)  # type: ignore[arg-type]
        for a, b in zip(first, second, strict=True)
    )


def test_pairs_of_plain_tensors_make_the_same_batches() -> None:
    plain = [(image.as_subclass(Tensor), mask.as_subclass(Tensor)) for image, mask in samples(5)]
    unlabeled = [image.as_subclass(Tensor) for image in images(7)]
    stream = TwoStream(plain, unlabeled, 2, 3, CROP, CROP, seed=0)
    assert all(same(stream[step], build()[step]) for step in range(4))


def test_shapes_and_types() -> None:
    batch = build()[3]
    assert batch.x_labeled.shape == (2, 3, 12, 16) and batch.x_labeled.dtype == torch.float32
    assert batch.y_labeled.shape == (2, 12, 16) and batch.y_labeled.dtype == torch.int64
    assert batch.x_unlabeled is not None and batch.x_unlabeled.shape == (3, 3, 12, 16)
    assert batch.valid_unlabeled is not None and batch.valid_unlabeled.dtype == torch.bool
    assert all(type(tensor) is Tensor for tensor in batch), "no subclass reaches the network"
    assert same(batch, batch.to("cpu"))


def test_same_batches_with_any_workers_and_from_any_start() -> None:
    alone = load(build(), range(8))
    assert isinstance(alone[0], Batch)
    for workers, start in ((2, 0), (0, 5), (2, 5)):
        for first, second in zip(
            alone[start:], load(build(), range(start, 8), workers), strict=True
        ):
            assert same(first, second)
    assert not same(alone[0], build(seed=1)[0])


@pytest.mark.parametrize("batch_unlabeled", [3, 4])
def test_labeled_batches_do_not_depend_on_the_unlabeled_stream(batch_unlabeled: int) -> None:
    alone, both = build(unlabeled=None), build(batch_unlabeled=batch_unlabeled)
    for step in range(10):
        first, second = alone[step], both[step]
        assert torch.equal(first.x_labeled, second.x_labeled)
        assert torch.equal(first.y_labeled, second.y_labeled)
        assert first.x_unlabeled is None and first.valid_unlabeled is None
    loaded = load(alone, range(2))[1]
    assert loaded.x_unlabeled is None


def test_the_rng_of_the_run_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batch = build()[1]
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    assert same(batch, build()[1])


def noisy(image: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """A user's transform that draws from all three: gamma, noise and a flip."""
    pixels = image.float() / 255 * random.uniform(0.5, 1.0)
    pixels = pixels + torch.from_numpy(np.random.normal(0, 0.1, pixels.shape)).float()  # noqa: NPY002
    return pixels * torch.rand(1), mask


NOISY: dict[str, Any] = {"labeled_transform": noisy, "unlabeled_transform": noisy}


def test_transforms_that_draw_from_numpy_and_random_are_seeded_too() -> None:
    """The same batches with any number of loader processes, from any start, whatever was drawn before."""
    alone = load(build(**NOISY), range(6))
    for workers, start in ((2, 0), (0, 4), (1, 4)):
        random.seed(workers)
        np.random.seed(workers)  # noqa: NPY002
        again = load(build(**NOISY), range(start, 6), workers)
        assert all(same(first, second) for first, second in zip(alone[start:], again, strict=True))
    x = torch.cat([batch.x_labeled for batch in alone])
    assert len({tuple(noise.flatten().tolist()) for noise in x}) == len(x), "each visit draws anew"
    assert not same(alone[0], build(seed=1, **NOISY)[0])


def test_numpy_and_random_go_on_as_if_no_batch_had_been_made() -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())  # noqa: NPY002

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = [draw(), draw()]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = draw()
    _ = build(**NOISY)[1]
    assert [first, draw()] == expected


def test_each_epoch_visits_every_image_once_in_a_new_order() -> None:
    stream = build(labeled=5, unlabeled=7, batch_labeled=2, batch_unlabeled=3)
    walks: tuple[list[int], list[int]] = ([], [])
    for step in range(70):
        for walk, indices in zip(walks, stream.indices(step), strict=True):
            walk += indices
    for walk, length in zip(walks, (5, 7), strict=True):
        epochs = [tuple(walk[i : i + length]) for i in range(0, len(walk), length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert len(set(epochs)) > 15


def test_fewer_images_than_the_batch() -> None:
    stream = build(labeled=1, unlabeled=2, batch_labeled=3, batch_unlabeled=5)
    batch = stream[4]
    assert batch.x_labeled.shape[0] == 3
    assert batch.x_unlabeled is not None and batch.x_unlabeled.shape[0] == 5
    assert set(Counter(stream.indices(4)[1]).values()) == {2, 3}


def test_every_visit_is_augmented_anew() -> None:
    """One image seen 40 times: no view comes twice (`itertools.cycle` would freeze them)."""
    stream = build(labeled=1, unlabeled=1, batch_labeled=2, batch_unlabeled=2)
    batches = [stream[step] for step in range(20)]
    for views in ([b.x_labeled for b in batches], [b.x_unlabeled for b in batches]):
        flat = torch.cat(views).flatten(1)  # type: ignore[arg-type]
        assert len(torch.unique(flat, dim=0)) == 40
    # Labeled and unlabeled views of one image differ too: their streams draw apart.
    twin = TwoStream([Sample(*samples(1)[0])], images(1), 1, 1, CROP, CROP, 0)[0]
    assert not torch.equal(twin.x_labeled, twin.x_unlabeled)  # type: ignore[arg-type]


def test_valid_is_false_exactly_on_padding() -> None:
    white = [tv_tensors.Image(torch.full((3, 6, 8), 255, dtype=torch.uint8))]
    transform = train_transform(crop=(12, 16), jitter=None)
    padded = 0
    stream = TwoStream(samples(1), white, 1, 2, CROP, transform, 0)
    for step in range(10):
        batch = stream[step]
        assert batch.x_unlabeled is not None and batch.valid_unlabeled is not None
        assert torch.equal(batch.valid_unlabeled, (batch.x_unlabeled != 0).all(1))
        padded += int((~batch.valid_unlabeled).sum())
    assert padded > 0


def test_any_torchvision_transform_fits() -> None:
    transform = v2.Compose(
        [
            v2.RandomCrop(
                (20, 20),
                pad_if_needed=True,
                fill={tv_tensors.Image: 0, tv_tensors.Mask: 255},
            ),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
    )
    stream = build(labeled_transform=transform, unlabeled_transform=transform)
    batch = stream[0]
    assert batch.valid_unlabeled is not None
    assert (~batch.valid_unlabeled).sum() == 3 * (20 * 20 - 14 * 18)
    assert (batch.y_labeled == 255).sum() == 2 * (20 * 20 - 14 * 18)
    assert same(batch, load(stream, range(1), workers=1)[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labeled": 0}, "labeled stream needs at least one image"),
        ({"unlabeled": 0}, "unlabeled stream needs at least one image"),
        ({"batch_labeled": 0}, "a batch of 0"),
    ],
)
def test_empty_streams_are_refused(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
    with pytest.raises(IndexError):
        build()[-1]
