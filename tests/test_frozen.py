"""A frozen encoder is rebuilt, not saved: the state holds what changes, and tells another encoder apart."""

import copy
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import nn

from gmix import LabeledReference
from gmix.methods import GuidedMix
from gmix.nn.frozen import checksum


def trained() -> GuidedMix:
    method = GuidedMix(tiny_net())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        optimizer.zero_grad()
        losses = method(*tiny_batch(seed=seed), progress=0.5, generator=seeded(seed))
        losses["total"].backward()
        optimizer.step()
    return method


def numbers(module: nn.Module) -> int:
    return sum(t.numel() for t in (*module.parameters(), *module.buffers()))


def test_the_state_holds_what_changes_and_a_checksum() -> None:
    method = trained()
    state = method.state_dict()
    assert not any(name.startswith("reference.encoder.") for name in state)
    kept = {name for name, _ in (*method.named_parameters(), *method.named_buffers())}
    frozen = {f"reference.encoder.{name}" for name in method.reference.encoder.state_dict()}
    views = {name for name in kept if name.startswith("color.")}  # made from mean and std
    assert state.keys() == kept - frozen - views
    saved = sum(value.numel() for value in state.values())
    assert saved == numbers(method) - numbers(method.reference.encoder) - numbers(method.color)
    assert state["reference.encoder_sum"].shape == (32,)


def test_the_checksum_is_sha256_of_names_types_shapes_and_bytes() -> None:
    layer = nn.BatchNorm1d(2)
    digest = hashlib.sha256()
    for name, value in layer.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    assert bytes(checksum(layer).tolist()) == digest.digest()
    conv = nn.Conv2d(3, 4, 3)
    assert torch.equal(
        checksum(conv), checksum(copy.deepcopy(conv).to(memory_format=CHANNELS_LAST))
    )


CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("through", ["memory", "torch", "safetensors"])
def test_who_rebuilds_it_goes_on_bit_for_bit(through: str, tmp_path: Path) -> None:
    method = trained()
    state: Any = method.state_dict()
    if through == "torch":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    if through == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "m.safetensors")
        state = load_file(tmp_path / "m.safetensors")
    other = GuidedMix(tiny_net())
    other.load_state_dict(state)
    batch = tiny_batch(seed=7)
    expected, losses = (m(*batch, progress=0.5, generator=seeded(7)) for m in (method, other))
    assert all(torch.equal(value, losses[name]) for name, value in expected.items())
    again = other.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in method.state_dict().items())


def test_another_encoder_is_refused_before_anything_is_loaded() -> None:
    state = trained().state_dict()
    other = GuidedMix(tiny_net(seed=1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"reference.encoder has other weights than when"
    ) as error:
        other.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    # As a part of something larger, by torch's own loading.
    owner = nn.ModuleDict({"method": GuidedMix(tiny_net(seed=1))})
    with pytest.raises(RuntimeError, match=r"method.reference.encoder has other weights"):
        owner.load_state_dict({f"method.{name}": value for name, value in state.items()})


def test_its_weights_may_be_kept_and_loaded_beside() -> None:
    method = trained()
    other = GuidedMix(tiny_net(seed=1))
    other.state_dict()  # has taken the checksum of what is replaced now
    other.reference.encoder.load_state_dict(method.reference.encoder.state_dict())
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.reference.encoder_sum, method.reference.encoder_sum)


def test_a_state_without_its_checksum_is_refused() -> None:
    method = trained()
    state = method.state_dict()
    del state["reference.encoder_sum"]
    with pytest.raises(RuntimeError, match=r"reference.encoder_sum is missing from it, 1 "):
        method.load_state_dict(state)
    encoder = method.reference.encoder.state_dict()
    state |= {f"reference.encoder.{name}": value for name, value in encoder.items()}
    with pytest.raises(RuntimeError, match=rf"missing from it, {1 + len(encoder)} entries"):
        method.load_state_dict(state)


def test_alone_it_does_the_same() -> None:
    reference, other = (LabeledReference(tiny_net().model.encoder, 3) for _ in range(2))
    x, y, _ = tiny_batch()
    reference.remember([*zip(x, y, strict=True)])
    other.load_state_dict(reference.state_dict())
    assert torch.equal(other.keys, reference.keys)
    with pytest.raises(RuntimeError, match="encoder has other weights"):
        LabeledReference(tiny_net(seed=1).model.encoder, 3).load_state_dict(reference.state_dict())
