"""Steps whose loss is not finite: left out on request, else kept to be looked at."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gmix.data import TwoStream
from gmix.training.checkpoint import list_checkpoints
from gmix.training.config import TrainConfig
from gmix.training.damaged import item_name
from gmix.training.yamlfile import write_yaml
from gmix.whole import whole_folder

PREFIX = "nonfinite-"

README = """\
# Step {step} of this training was not finite

{terms}

- `batch.safetensors`: its images and masks, as the network saw them
- `config.yaml`: all flags of the training
- `checkpoint-STEP/`: the state {state}

The step once more, where the data is:

```python
from gmix.training.replay import replay

print(replay({folder!r}))
```

Labeled images:

{labeled}

Unlabeled images:

{unlabeled}
"""


class NonFinite(FloatingPointError):
    """A step whose loss is not finite.

    Attributes:
        step: its number, the first being 1.
        terms: the named losses.

    Examples:
        >>> NonFinite(5, {"ce": 1.5, "total": math.inf})
        NonFinite('the loss is not finite at step 5 (ce = 1.5, total = inf)')
    """

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        self.step = step
        self.terms = terms
        said = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(f"the loss is not finite at step {step} ({said})")


class Guard:
    """Leaves out steps whose loss or gradient is not finite, as if they had not been.

    The price: the host waits for the device at every step, and what a forward pass changes (statistics of
    BatchNorm, teachers, memories) is copied before.

    Args:
        allowed: how many; one more ends the training.
        skipped: the numbers of those there were; grows.
        tell: called at each of them, with the method as it was before.
    """

    def __init__(self, allowed: int, skipped: list[int], tell: Callable[[NonFinite], None]) -> None:
        self.allowed = allowed
        self.skipped = skipped
        self.tell = tell
        self._before: dict[str, Tensor] = {}

    def remember(self, method: nn.Module) -> None:
        """Before a step: copy all that is not changed by the optimizer alone."""
        learned = {name for name, p in method.named_parameters() if p.requires_grad}
        state = method.state_dict()
        self._before = {name: state[name].clone() for name in state if name not in learned}

    def passes(self, step: int, losses: dict[str, Tensor], method: nn.Module) -> bool:
        """After the backward pass: whether the step counts; else the method is as it was before.

        Raises:
            NonFinite: if it is one too many.
        """
        values = torch.stack([loss.float() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        # Nothing is clipped: the norm is all that is wanted.
        terms["gradient"] = float(nn.utils.clip_grad_norm_(method.parameters(), math.inf))
        if all(map(math.isfinite, terms.values())):
            return True
        state = method.state_dict()
        for name, before in self._before.items():
            state[name].copy_(before)
        bad = NonFinite(step, terms)
        if len(self.skipped) >= self.allowed:
            raise bad
        self.tell(bad)
        self.skipped.append(step)
        return False


def refuse_spoiled(method: nn.Module, step: int) -> None:
    """Make sure that the weights are worth keeping.

    Raises:
        FloatingPointError: if one of them is not finite.
    """
    finite = [parameter.isfinite().all() for parameter in method.parameters()]
    if not torch.stack(finite).all():
        raise FloatingPointError(
            f"weights are not finite after step {step}, though its loss was: no checkpoint is written, "
            "the one before stays; try a lower --lr, --amp none, or --skip-nonfinite N"
        )


def save_reproduction(
    out: Path,
    bad: NonFinite,
    config: TrainConfig,
    stream: TwoStream,
    save_state: Callable[[Path], Any] | None,
) -> Path:
    """Write `out/nonfinite-STEP/`: the batch, the flags, a state to start from, and how to replay it.

    Args:
        out: the folder of the run.
        bad: what happened.
        config: its flags.
        stream: its batches.
        save_state: writes a checkpoint of the state before the step into a folder, if that state is
            still there; else the newest checkpoint is copied, and the steps since have to be done anew.

    Raises:
        ValueError: if it cannot be written.
    """
    folder = out / f"{PREFIX}{bad.step:08d}"
    batch = stream[bad.step - 1]
    tensors = {n: t.contiguous() for n, t in batch._asdict().items() if t is not None}
    labeled, unlabeled = batch_names(stream, bad.step)
    state = "before the step" if save_state else "some steps before (absent: from the beginning)"
    text = README.format(
        step=bad.step,
        terms="\n".join(f"- {name} = {value:g}" for name, value in bad.terms.items()),
        state=state,
        folder=str(folder),
        labeled="\n".join(f"- {name}" for name in labeled),
        unlabeled="\n".join(f"- {name}" for name in unlabeled) or "none",
    )
    with whole_folder(folder) as aside:
        save_file(tensors, aside / "batch.safetensors", metadata={"step": str(bad.step)})
        write_yaml(config, aside / "config.yaml")
        (aside / "README.md").write_text(text, encoding="utf-8")
        if save_state is not None:
            save_state(aside)
        else:
            for newest in list_checkpoints(out)[-1:]:
                shutil.copytree(newest.path, aside / newest.path.name)
    return folder


def batch_names(stream: TwoStream, step: int) -> tuple[list[str], list[str]]:
    """The labeled and the unlabeled images that step number `step` (from 1) learns from."""
    labeled, unlabeled = stream.indices(step - 1)
    return (
        [item_name(stream.labeled, index) for index in labeled],
        [item_name(stream.unlabeled, index) for index in unlabeled],
    )


def first_names(names: list[str], count: int = 8) -> str:
    """File names for a message of one line; the paths are in the README.

    Examples:
        >>> first_names(["x/a.png", "x/b.png", "x/c.png"], 2), first_names(["x/a.png"], 1)
        ('a.png, b.png and 1 more', 'a.png')
    """
    shown = ", ".join(Path(name).name for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
