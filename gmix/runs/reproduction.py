"""Reproduction of a non-finite step: a folder with its batch, flags, an earlier state, and how to replay it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import write_yaml
from gmix.data import TwoStream
from gmix.data.damaged import item_name
from gmix.errors import NonFinite
from gmix.runs.checkpoint import list_checkpoints
from gmix.runtime.atomic import atomic_folder

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


def save_reproduction(
    out: Path,
    bad: NonFinite,
    config: TrainConfig,
    stream: TwoStream,
    save_state: Callable[[Path], Any] | None,
) -> Path:
    """Write `out/nonfinite-STEP/`: the batch, the flags, a state to start from, and how to replay it.

    Args:
        out: Folder of the run.
        bad: Error of the step.
        config: Configuration of the run.
        stream: Batches of the run.
        save_state: Writes a checkpoint of the state before the step into a folder; None if that state is lost. Then the
            newest checkpoint is copied, and the steps since must be repeated.

    Raises:
        ValueError: If the folder cannot be written.
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
    with atomic_folder(folder) as aside:
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
    """Return the names of the labeled and unlabeled images of a step (counted from 1)."""
    labeled, unlabeled = stream.indices(step - 1)
    return (
        [item_name(stream.labeled, index) for index in labeled],
        [item_name(stream.unlabeled, index) for index in unlabeled],
    )


def first_names(names: list[str], count: int = 8) -> str:
    """Shorten a list of files to one line of names; the README has the paths.

    Examples:
        >>> first_names(["x/a.png", "x/b.png", "x/c.png"], 2), first_names(["x/a.png"], 1)
        ('a.png, b.png and 1 more', 'a.png')
    """
    shown = ", ".join(Path(name).name for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
