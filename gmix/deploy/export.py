"""Export of a trained network to one file that runs without gmix: ONNX, or `torch.export`."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

import gmix
from gmix.deploy.predict import predict_logits
from gmix.nn.network import GuidedMixNet
from gmix.runs.saved import SavedModel
from gmix.runtime.atomic import PART, cannot_write, check_writable, make_folder
from gmix.runtime.own import check_own, remember

Size = tuple[int, int]
Format = Literal["onnx", "torch"]
Run = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
"""Largest allowed difference of an exported file's logits from torch's, relative to the largest logit."""

# Batch size, then height and width in units of the padding. The checked sizes are taller, wider, smaller and larger,
# because a graph may only hold for images like those it was traced with.
_TRACED = (2, 3.2, 4.1)
_CHECKED = ((1, 2.3, 2.1), (3, 4.1, 3.3), (1, 2.1, 6.3), (1, 6.3, 2.1))


class Deployable(nn.Module):
    """Network that maps images in 0..255 to logits of their own size: all steps of `gmix predict`.

    It resizes (if the model was trained so), normalises, pads to what the network can divide, runs the network with
    MITrans, crops and resizes back. Every step traces with symbolic sizes.

    Args:
        saved: Network, input statistics and size.

    Shapes:
        (N, C, H, W) float in 0..255 -> (N, K, H, W), any N, H and W; K is 1 for a binary model.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> from gmix.data import Classes
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)).eval()
        >>> mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
        >>> deployable = Deployable(SavedModel(net, Classes.of(3), None, mean, std))
        >>> deployable(torch.full((1, 3, 50, 70), 255.0)).shape
        torch.Size([1, 3, 50, 70])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        net: GuidedMixNet = copy.deepcopy(saved.net).cpu().float()
        self.stride = net.stride
        self.smallest = net.padded(1, 1)[0]
        self.size = saved.size
        self.net = _any_size(net.export())
        # The model's statistics are for images in 0..1.
        self.register_buffer("mean", 255 * torch.tensor(saved.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(saved.std)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` in 0..255 to logits `(N, K, H, W)`."""
        own = image.shape[-2:]
        x = image
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        x = (x - self.mean) / self.std
        below, right = (self._missing(length) for length in x.shape[-2:])
        # Cropped by negative padding: tracing would assume the memory layout of a slice for every size.
        logits = F.pad(self.net(F.pad(x, (0, right, 0, below))), (0, -right, 0, -below))
        if self.size is not None:
            logits = F.interpolate(logits, own, mode="bilinear")
        return logits

    def _missing(self, length: int) -> int:
        padded: Any = (length + self.stride - 1) // self.stride * self.stride
        if self.smallest > self.stride:
            padded = torch.sym_max(padded, self.smallest)
        missing: int = padded - length
        return missing


def export_model(
    saved: SavedModel, path: str | Path, format: Format, size: Size | None = None
) -> float:
    """Export a trained network to one file, and check the file against the network.

    The file maps float images `(N, C, H, W)` in 0..255, of any N, H and W, to logits `(N, K, H, W)`: see `Deployable`.
    It holds the metadata of `describe`.

    Args:
        saved: Network, classes and input statistics.
        path: File to write; its folder is created if it does not exist.
        format: "onnx", or "torch" for `torch.export.load`.
        size: Fixed height and width of all images, for runtimes and networks that need them.

    Returns:
        Largest difference between the logits of file and network, relative to the largest logit (or to 1).

    Raises:
        ValueError: If the network cannot be exported (the message says whether a fixed size helps), if the file gives
            other logits, if it exists and is not gmix's, or if it cannot be written. An existing file then stays.
        ImportError: If a package that the format needs is missing.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # the link stays
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is there and no file; choose another name")
    check_own([path])
    check_writable(path.parent)
    if format == "onnx":
        import onnxruntime  # fail before the work
        import onnxscript  # noqa: F401

        onnxruntime.set_default_logger_severity(3)  # silence its warnings about optimisations
    module = Deployable(saved).eval()
    facts = describe(saved, size)
    with _quiet():
        program = trace(module, len(saved.mean), size)
        if format == "onnx":
            written: Any = torch.onnx.export(
                program, input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
            )
            label(written.model, facts, size)
        else:
            written = BytesIO()  # torch aborts the process when it writes to a full disk
            torch.export.save(program, written, extra_files={"gmix.json": json.dumps(facts)})
    make_folder(path.parent)
    try:
        with TemporaryDirectory(prefix=".", suffix=PART, dir=path.parent) as folder, _quiet():
            aside = Path(folder) / path.name
            if format == "onnx":
                written.save(aside)
            else:
                aside.write_bytes(written.getbuffer())
            run = load_onnx(aside) if format == "onnx" else load_program(aside)
            difference = _check(saved, run, size)
            made = list(Path(folder).iterdir())  # ONNX stores weights above 2 GB beside the file
            check_own(path.with_name(one.name) for one in made)
            for one in made:
                remember(one, path.with_name(one.name))
                one.replace(path.with_name(one.name))
    except OSError as error:
        raise cannot_write(path, error) from error
    return difference


def trace(module: Deployable, channels: int, size: Size | None) -> torch.export.ExportedProgram:
    """Trace the graph, for any batch size and, without `size`, any height and width.

    Raises:
        ValueError: If the network's code branches on the image size.
    """
    batch, *shares = _TRACED
    shape = (batch, channels, *(size or _pixels(shares, module.smallest)))
    free = dict.fromkeys([0] if size else [0, 2, 3], torch.export.Dim.DYNAMIC)
    try:
        return torch.export.export(module, (torch.zeros(shape),), dynamic_shapes={"image": free})
    except Exception as error:  # any error of the network's code in tracing
        cannot = "cannot be exported"
        if size is None:
            cannot += " for images of any size: fix it with --size HxW"
        raise ValueError(f"the network {cannot} ({_first_line(error)})") from error


def label(model: Any, facts: dict[str, Any], size: Size | None) -> None:
    """Add `facts` to the metadata of an ONNX model (all but strings as JSON), and name the axes."""
    for key, value in facts.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    names = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    for tensor in (*model.graph.inputs, *model.graph.outputs):
        for axis, name in names.items():
            tensor.shape[axis] = name


def describe(saved: SavedModel, size: Size | None = None) -> dict[str, Any]:
    """Collect the metadata of an exported file: how to feed it and how to read its output.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> from gmix.data import Classes
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=1)).eval()
        >>> facts = describe(SavedModel(net, Classes.of(1), None, (0.4,), (0.2,)))
        >>> facts["classes"], facts["output"]
        (['background', 'foreground'], 'logits (N, 1, H, W): the second class where above 0')
    """
    classes, channels = saved.classes, saved.format.channels
    where = "H, W" if size is None else f"{size[0]}, {size[1]}"
    output = f"logits (N, {classes.channels}, {where}): the class is the largest"
    if classes.binary:
        output = f"logits (N, 1, {where}): the second class where above 0"
    return {
        "gmix_version": gmix.__version__,
        "classes": list(classes.names),
        "colors": [list(color) for color in classes.palette],
        "input": f"image (N, {channels}, {where}): float32 in 0..255, not normalised",
        "output": output,
        "mean": list(saved.mean),
        "std": list(saved.std),
        "resized_to": saved.size,
        "value_range": saved.format.span,
    }


def load_onnx(path: str | Path) -> Run:
    """Load an ONNX file as a function from images to logits, on the CPU."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def load_program(path: str | Path) -> Run:
    """Load a file of `torch.export.save` as a function from images to logits."""
    run: Run = torch.export.load(path).module()
    return run


class _AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, because ONNX lacks it for symbolic sizes."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.bins = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_shares(x.shape[axis - 2], bins, x) for axis, bins in enumerate(self.bins))
        return rows @ x @ columns.T


def _shares(length: int, bins: int, like: Tensor) -> Tensor:
    """Return `(bins, length)`: each row holds the weights of the mean that a bin computes."""
    place = torch.arange(length, device=like.device)
    bin = torch.arange(bins, device=like.device)[:, None]
    inside = (place >= bin * length // bins) & (place < ((bin + 1) * length + bins - 1) // bins)
    inside = inside.to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class _EvenConv(nn.Module):
    """Variant of timm's `Conv2dSame` for sizes that the stride divides, where the padding is constant.

    This holds for every layer, because images are padded to the encoder's stride. Tracing the general rule takes
    minutes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.pads: list[int] = []
        for axis in (1, 0):
            stride = conv.stride[axis]
            missing = max(conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1 - stride, 0)
            self.pads += [missing // 2, missing - missing // 2]

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = F.pad(x, self.pads)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _any_size(model: nn.Module) -> nn.Module:
    """Replace modules, in place, that trace for one size only, or slowly."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _EvenConv(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                size: Any = child.output_size
                rows, columns = size if isinstance(size, tuple) else (size, size)
                if (rows, columns) != (1, 1):
                    setattr(parent, name, _AveragePool(rows, columns))
    return model


@torch.inference_mode()
def _check(saved: SavedModel, run: Run, size: Size | None) -> float:
    """Compare the file with the results of `gmix predict`, which shares no code with it."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, *shares in _CHECKED[: 2 if size else None]:
        own = size or _pixels(shares, saved.net.padded(1, 1)[0])
        images = 255 * torch.rand(batch, len(saved.mean), *own, generator=generator)
        expected = torch.cat([predict_logits(saved, image) for image in images]).cpu()
        expected = F.interpolate(expected, own, mode="bilinear")  # a copy, unless resized
        try:
            difference = float((run(images) - expected).abs().max())
            wrong = f"they are {difference:.1e} apart"
        except Exception as error:  # any error of a runtime at a size it does not support
            difference, wrong = math.inf, _first_line(error)
        worst = max(worst, difference / max(float(expected.abs().max()), 1.0))
        if not worst <= TOLERANCE:
            way_out = "; fix the size with --size HxW" if size is None else ""
            raise ValueError(
                "the exported file does not give the logits of the network for images of "
                f"{own[0]} x {own[1]} ({wrong}){way_out}"
            )
    return worst


def _pixels(shares: list[float], unit: int) -> Size:
    # Some encoders use stride 32, whatever was requested.
    height, width = (int(share * max(unit, 32)) + 1 for share in shares)
    return height, width


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about the internals of exporting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
