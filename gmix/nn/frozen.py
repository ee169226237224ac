"""Modules that hold a frozen encoder: the encoder is rebuilt, not saved; only its checksum is saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HoldsFrozenEncoder", "checksum"]


def checksum(module: nn.Module) -> Tensor:
    """Return the SHA-256 of all weights and buffers by name, as `(32,)` uint8.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> before = checksum(layer)
        >>> _ = layer.weight.data.add_(1)
        >>> torch.equal(checksum(layer), before)
        False
    """
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


class HoldsFrozenEncoder(nn.Module):
    """Keep `self.encoder` out of the state: build the same encoder, from the same weights, before loading."""

    encoder: Any
    encoder_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("encoder_sum", torch.zeros(32, dtype=torch.uint8))
        self._summed: int | None = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state without the encoder."""
        self._sum()
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in self._encoder_names(kwargs.get("prefix", "")):
            state.pop(name, None)
        return state

    def state_fault(self, state: Mapping[str, Any], prefix: str = "") -> str | None:
        """Say why a state does not fit this module, if it was saved with another encoder."""
        saved = state.get(f"{prefix}encoder_sum")
        if not isinstance(saved, Tensor) or torch.equal(saved.cpu(), self._sum().cpu()):
            return None
        return (
            f"{prefix}encoder has other weights than when it was saved, and is not saved itself: begin with the same "
            "encoder weights (and seed), or load them into it before"
        )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        fault = self.state_fault(state_dict, prefix)
        state_dict.update(self._encoder_names(prefix))  # torch would report these as missing
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if fault is not None:
            args[4].append(fault)  # the errors that torch collects

    def _encoder_names(self, prefix: str) -> dict[str, Tensor]:
        return {f"{prefix}encoder.{name}": t for name, t in self.encoder.state_dict().items()}

    def _sum(self) -> Tensor:
        """Return the checksum, recomputed only if the encoder has changed."""
        version = sum(t._version for t in (*self.encoder.parameters(), *self.encoder.buffers()))
        if self._summed != version:
            self.encoder_sum.copy_(checksum(self.encoder))
            self._summed = version
        return self.encoder_sum
