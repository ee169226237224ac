"""Draw the pictures of the documentation from a finished `gmix demo`.

    gmix demo
    python benchmarks/pictures.py gmix-demo

Every picture is what a part or a method really makes of the demo's validation scenes, which no training saw: its
networks, its teacher and the memory of its reference are those of the demo's runs. The demo does not mix; here
mixing is turned on, half and half, so that all eight steps have something to show. Masks are painted in the demo's
colours; white is what nobody learns.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import gmix
from gmix import functional as G
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import read_yaml
from gmix.data import Classes
from gmix.demo.scenes import NAMES, PALETTE, Folders
from gmix.deploy.predict import predict_image
from gmix.methods import CCT
from gmix.methods.cct import disturb, object_map
from gmix.methods.classmix import half_of_classes
from gmix.methods.guidedmix import Guidance
from gmix.nn.mitrans import non_local
from gmix.nn.weights import encoder_stats
from gmix.report.sheet import colour_mask
from gmix.runs.checkpoint import list_checkpoints, load_checkpoint
from gmix.runs.saved import SavedModel
from gmix.training.state import build_state

CELL, GAP = 144, 6  # pixels
INK, PALE, LINE, SECOND = "#1b1f24", "#6b7280", "#2563eb", "#d97706"
LARGEST = 60_000  # bytes of a file
FIRST = 4  # the validation scene that is drawn: four digits on a background of several colours

Pixels = np.ndarray[Any, Any]
Cell = tuple[str, Pixels]  # a title, and an image (H, W, 3) or class ids (H, W)


class Demo(NamedTuple):
    """A finished demo, opened: both networks, and scenes as pixels and as tensors."""

    supervised: SavedModel
    trained: SavedModel  # by GuidedMix
    method: gmix.methods.GuidedMix  # with the teacher and the memory of its last checkpoint
    scores: tuple[float, float]
    x_labeled: Tensor
    y_labeled: Tensor
    scenes: list[Pixels]  # validation, at their own size
    truth: list[Pixels]
    x: Tensor  # the same, at the size the networks see

    def pixels(self, x: Tensor) -> Pixels:
        """A normalised image `(3, H, W)` as pixels."""
        mean, std = (torch.tensor(v)[:, None, None] for v in self.stats)
        return ((x * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()

    @property
    def stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.trained.mean, self.trained.std


def open_demo(run: Path, scenes: int = 8) -> Demo:
    """Read what `gmix demo` left in the folder `run`."""
    folders = Folders.inside(run / "scenes")
    config = TrainConfig(**read_yaml(run / "guidedmix" / "config.yaml"))
    channels = Classes.of(folders.classes).channels
    mixing = replace(config, method_args={**config.method_args, "direct": 0.5})
    method = build_state(mixing, channels, torch.device("cpu")).method.eval()
    checkpoint = list_checkpoints(run / "guidedmix")[-1]
    load_checkpoint(checkpoint.path, {"method": method})
    assert isinstance(method, gmix.methods.GuidedMix)
    mean, std = encoder_stats(config.encoder)
    size = parse_size(str(config.size))

    def opened(folder: Path) -> list[Pixels]:
        return [np.array(Image.open(path)) for path in sorted(folder.iterdir())]

    def tensor(images: Sequence[Pixels]) -> Tensor:
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    masks = torch.from_numpy(np.stack(opened(folders.masks))).float()[:, None]
    images, truth = opened(folders.val_images)[:scenes], opened(folders.val_masks)[:scenes]
    return Demo(
        SavedModel.from_pretrained(run / "supervised"),
        SavedModel.from_pretrained(run / "guidedmix"),
        method,
        (miou(run / "supervised"), miou(run / "guidedmix")),
        tensor(opened(folders.images)),
        F.interpolate(masks, size, mode="nearest")[:, 0].long(),
        images,
        truth,
        tensor(images),
    )


def miou(run: Path) -> float:
    """Of the last weights of a run, in percent."""
    return 100 * float(json.loads((run / "results.json").read_text())["last"]["miou"])


# Drawing ------------------------------------------------------------------------------------------


def strip(path: Path, rows: Sequence[Sequence[Cell]], *, legend: bool = False) -> None:
    """Rows of titled cells; every cell of a row has its title above it, unless it is empty."""
    font = ImageFont.load_default(14)
    top = [20 if any(title for title, _ in row) else 0 for row in rows]
    width = max(len(row) for row in rows) * (CELL + GAP) - GAP
    height = sum(CELL + t + GAP for t in top) - GAP + (26 if legend else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for row, title_height in zip(rows, top, strict=True):
        for j, (title, pixels) in enumerate(row):
            x = j * (CELL + GAP)
            draw.text((x, y), title, fill=INK, font=font)
            sheet.paste(cell(pixels), (x, y + title_height))
        y += title_height + CELL + GAP
    if legend:
        for k, (name, colour) in enumerate(zip(NAMES, PALETTE, strict=True)):
            x = k * (width // len(NAMES))
            draw.rectangle((x, y + 4, x + 12, y + 16), fill=colour)
            draw.text((x + 17, y + 1), "back" if k == 0 else name, fill=INK, font=font)
    save(sheet, path)


def cell(pixels: Pixels) -> Image.Image:
    """One picture of a strip: class ids are painted; what is small is enlarged in squares."""
    picture = Image.fromarray(paint(pixels))
    nearest = pixels.ndim == 2 or min(pixels.shape[:2]) < 40
    return picture.resize(
        (CELL, CELL), Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    )


def paint(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else colour_mask(pixels, PALETTE)


def heat(values: Tensor) -> Pixels:
    """A map `(h, w)` from its least (white) to its greatest value (blue)."""
    share = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-9)
    low, high = torch.tensor([255.0, 255.0, 255.0]), torch.tensor([23.0, 60.0, 160.0])
    return torch.lerp(low, high, share[..., None]).byte().numpy()


def save(picture: Image.Image, path: Path) -> None:
    """As a PNG with as many colours as fit into `LARGEST` bytes."""
    for colours in (128, 96, 64, 48, 32, 24, 16):
        file = io.BytesIO()
        reduced = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        reduced.save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            break
    path.write_bytes(file.getvalue())


def chart(
    path: Path, draw: Callable[[Any], None], *, width: float = 5.2, height: float = 2.5
) -> None:
    """A plain chart: `draw` gets the axes."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=PALE, labelsize=9)
    draw(axes)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, size=10)
    save(rendered(figure, 90), path)


def rendered(figure: Figure, dpi: int) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    return Image.open(file)


def classes(probs: Tensor) -> Pixels:
    """The most probable class at each pixel of `(K, H, W)`."""
    return probs.argmax(0).numpy()


def sure(pseudo: gmix.PseudoMask, i: int, threshold: float) -> Pixels:
    """The labels of image i, white where they are not learned."""
    return pseudo.labels[i].masked_fill(pseudo.confidence[i] < threshold, 255).numpy()


# Parts --------------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guided(demo: Demo, seed: int = 11) -> Guidance:
    return demo.method.guide(demo.x_labeled, demo.y_labeled, demo.x, seeded(seed))


def result(demo: Demo, path: Path) -> None:
    """What both networks see."""
    titles = [
        "image",
        "truth",
        *(f"{n}, {s:.1f}" for n, s in zip(("supervised", "GuidedMix"), demo.scores, strict=True)),
    ]
    rows = []
    for i, (image, truth) in enumerate(zip(demo.scenes[:3], demo.truth[:3], strict=True)):
        x = torch.from_numpy(image).permute(2, 0, 1)
        seen = [predict_image(saved, x) for saved in (demo.supervised, demo.trained)]
        cells = [image, truth, *seen]
        rows.append([(title if i == 0 else "", c) for title, c in zip(titles, cells, strict=True)])
    strip(path, rows, legend=True)


def mixer(demo: Demo, path: Path) -> None:
    guidance, i = guided(demo), FIRST
    partner, x = guidance.partners.x[i : i + 1], demo.x[i : i + 1]
    blends = [
        (
            f"lambda {lam}",
            demo.pixels(gmix.LabeledUnlabeledMixer()(partner, x, torch.tensor([lam])).image[0]),
        )
        for lam in (0.1, 0.3, 0.5)
    ]
    strip(path, [[("unlabeled", demo.pixels(x[0])), ("labeled", demo.pixels(partner[0])), *blends]])


def lambdas(demo: Demo, path: Path) -> None:
    def draw(axes: Any) -> None:
        bins = np.linspace(0, 0.5, 51)
        for alpha, cap, colour in ((1.0, 0.3, LINE), (4.0, 0.5, SECOND)):
            drawn = G.sample_lambda(200_000, alpha=alpha, max_lambda=cap, generator=seeded())
            density, _ = np.histogram(drawn.numpy(), bins, density=True)
            axes.stairs(
                density, bins, color=colour, lw=1.8, label=f"alpha {alpha:g}, max_lambda {cap}"
            )
        axes.set(xlabel="lambda", ylabel="density", xlim=(0, 0.5))
        axes.legend(frameon=False, fontsize=9, loc="upper left")

    chart(path, draw)


def selector(demo: Demo, path: Path) -> None:
    teacher = demo.method.teacher.net
    with torch.no_grad():
        query, key = teacher.embed(demo.x), teacher.embed(demo.x_labeled)
    distance = torch.cdist(query, key)
    row: list[Cell] = []
    for i in (FIRST, FIRST + 1):
        order = distance[i].argsort()
        row.append(("unlabeled", demo.pixels(demo.x[i])))
        row += [
            (f"{name}, {distance[i, j]:.1f}", demo.pixels(demo.x_labeled[j]))
            for name, j in (("nearest", order[0]), ("farthest", order[-1]))
        ]
    strip(path, [row])


def attention(demo: Demo, path: Path) -> None:
    """The attention of two positions, with the frozen encoder's features as queries and keys."""
    image = demo.scenes[FIRST]
    x = F.interpolate(demo.x[FIRST : FIRST + 1], size=192, mode="bilinear")
    with torch.no_grad():
        z = demo.method.reference.encoder(x)[-1]
    z = 5 * F.normalize(z - z.mean((2, 3), keepdim=True), dim=1)
    _, c, h, w = z.shape
    # With one-hot values, what a position takes up is its row of the attention map.
    values = torch.eye(h * w).view(1, h * w, h, w)
    rows = torch.cat(
        [
            non_local(z, z, F.pad(part, (0, 0, 0, 0, 0, 2 * c - part.shape[1])))[:, : part.shape[1]]
            for part in values.split(2 * c, 1)
        ],
        1,
    )
    truth = F.interpolate(torch.from_numpy(demo.truth[FIRST]).float()[None, None], (h, w)).flatten()
    cells: list[Cell] = [("image", image)]
    for title, spots in (("of a digit", truth > 0), ("of the background", truth == 0)):
        spot = int(spots.nonzero()[len(spots.nonzero()) // 2])
        marked = np.array(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC))
        y, left = (round((p + 0.5) * CELL / h) for p in divmod(spot, w))
        marked[y - 4 : y + 4, left - 4 : left + 4] = (255, 40, 40)
        cells += [("asks", marked), (title, heat(rows[0, :, spot // w, spot % w].view(h, w)))]
    strip(path, [cells])


def decoupler(demo: Demo, path: Path) -> None:
    guidance, i = guided(demo), FIRST
    assert guidance.mix is not None
    mean = torch.lerp(guidance.mix.decoupled[i], guidance.direct[i], demo.method.direct)
    strip(
        path,
        [
            [
                (f"blend, lambda {guidance.mix.lam[i]:.2f}", demo.pixels(guidance.mix.image[i])),
                ("partner's mask", guidance.partners.y[i].numpy()),
                ("of the blend", classes(guidance.mix.predicted[i])),
                ("decoupled", classes(guidance.mix.decoupled[i])),
                ("direct", classes(guidance.direct[i])),
                ("mean of both", classes(mean)),
            ]
        ],
    )


def reference(demo: Demo, path: Path) -> None:
    guidance, i = guided(demo), FIRST
    x = demo.x[i : i + 1]
    ratio = F.interpolate(demo.method.reference.likelihood(x), size=x.shape[2:], mode="bilinear")
    strip(
        path,
        [
            [
                ("image", demo.scenes[i]),
                ("truth", demo.truth[i]),
                ("direct", classes(guidance.direct[i])),
                ("likeliest class", classes(ratio[0])),
                ("referred", classes(demo.method.reference(guidance.direct[i : i + 1], x)[0])),
            ]
        ],
    )


def certainty(demo: Demo, path: Path) -> None:
    pseudo = guided(demo).pseudo[FIRST]
    strip(
        path,
        [
            [
                ("image", demo.scenes[FIRST]),
                ("pseudo mask", classes(pseudo)),
                ("its probability", heat(pseudo.amax(0))),
                ("its certainty", heat(G.certainty(pseudo[None])[0])),
            ]
        ],
    )


def ramp(demo: Demo, path: Path) -> None:
    def draw(axes: Any) -> None:
        t = np.linspace(0, 1, 201)
        for length, colour in ((0.3, LINE), (1.0, SECOND)):
            axes.plot(
                t,
                [G.ramp_up(float(v), length) for v in t],
                color=colour,
                lw=1.8,
                label=f"ramp_length {length}",
            )
        axes.set(xlabel="share of the training that is done", ylabel="omega")
        axes.legend(frameon=False, fontsize=9, loc="lower right")

    chart(path, draw)


def adjustment(demo: Demo, path: Path) -> None:
    part = gmix.LogitAdjustment(len(NAMES))
    part.add(demo.y_labeled)
    offset = part.eval()(torch.zeros(1, len(NAMES), 1, 1)).flatten()

    def draw(axes: Any) -> None:
        axes.bar(range(len(NAMES)), offset.numpy(), color=LINE, width=0.7)
        axes.set_xticks(range(len(NAMES)), ["back", *NAMES[1:]])
        axes.set(xlabel="class", ylabel="added to its logit")

    chart(path, draw)


def teacher(demo: Demo, path: Path) -> None:
    """Teachers that follow a weight which is 1 from step 50 to step 1000, else 0."""
    student = torch.nn.Linear(1, 1, bias=False)
    followers = {decay: gmix.EMATeacher(student, decay) for decay in (0.9, 0.99)}
    lines: dict[float, list[float]] = {decay: [] for decay in followers}
    for step in range(1500):
        with torch.no_grad():
            student.weight.fill_(float(50 <= step < 1000))
        for decay, follower in followers.items():
            if step == 0:
                with torch.no_grad():
                    follower.net.weight.zero_()
            follower.update(student)
            lines[decay].append(follower.net.weight.item())

    def draw(axes: Any) -> None:
        axes.plot(
            [0, 50, 50, 1000, 1000, 1500],
            [0, 0, 1, 1, 0, 0],
            color=PALE,
            lw=1,
            ls="--",
            label="a weight of the student",
        )
        for (decay, line), colour in zip(lines.items(), (SECOND, LINE), strict=True):
            axes.plot(line, color=colour, lw=1.8, label=f"the teacher's, decay {decay}")
        axes.set(xlabel="step", ylabel="weight")
        axes.legend(frameon=False, fontsize=9, loc="center", bbox_to_anchor=(0.4, 0.5))

    chart(path, draw)


def views(demo: Demo, path: Path) -> None:
    mean, std = demo.stats
    color = gmix.StrongColor(mean=mean, std=std, p=1.0)
    x = demo.x[FIRST : FIRST + 1]
    drawn = [("strong colours", color(x, seeded(s))) for s in (0, 6)]
    turned = gmix.StrongColor(mean=mean, std=std, p=1.0, grey=0.0, hue=0.25)(x, seeded(4))
    blurred = gmix.GaussianBlur(p=1.0, sigma=(1.0, 2.0))(x, seeded(0))
    cells = [("image", x), *drawn, ("hue turned", turned), ("blurred", blurred)]
    strip(path, [[(title, demo.pixels(view[0])) for title, view in cells]])


def boxes(demo: Demo, path: Path) -> None:
    guidance = guided(demo)
    pasted = gmix.CutMix(p=1.0)(demo.x, seeded(2))
    i, source = FIRST, int(pasted.source[FIRST])
    strip(
        path,
        [
            [
                ("image", demo.pixels(demo.x[i])),
                ("another", demo.pixels(demo.x[source])),
                ("pasted", demo.pixels(pasted.apply(demo.x)[i])),
                ("pseudo mask", classes(guidance.pseudo[i])),
                ("pasted alike", classes(pasted.apply(guidance.pseudo)[i])),
            ]
        ],
    )


def paste(demo: Demo, path: Path) -> None:
    guidance, i = guided(demo), FIRST
    region = gmix.ClassPaste(len(NAMES), p=1.0)(guidance.partners.y, seeded(1))
    image = torch.where(region[:, None], guidance.partners.x, demo.x)
    known = torch.where(region, guidance.partners.y, guidance.pseudo.argmax(1))
    strip(
        path,
        [
            [
                ("unlabeled", demo.pixels(demo.x[i])),
                ("partner", demo.pixels(guidance.partners.x[i])),
                ("a class of it", guidance.partners.y[i].masked_fill(~region[i], 255).numpy()),
                ("pasted", demo.pixels(image[i])),
                ("target", known[i].numpy()),
            ]
        ],
    )


# Methods ------------------------------------------------------------------------------------------


@torch.no_grad()
def weak(demo: Demo) -> Tensor:
    """The teacher's logits of the scenes as they are."""
    return demo.method.teacher.net(demo.x)


def supervised(demo: Demo, path: Path) -> None:
    row: list[Cell] = []
    for i in range(3):
        row += [
            ("labeled", demo.pixels(demo.x_labeled[i])),
            ("its mask", demo.y_labeled[i].numpy()),
        ]
    strip(path, [row])


def mean_teacher(demo: Demo, path: Path) -> None:
    mean, std = demo.stats
    view = gmix.StrongColor(mean=mean, std=std)(demo.x, seeded(0))
    with torch.no_grad():
        student = demo.trained.net(view)
    i = FIRST
    strip(
        path,
        [
            [
                ("the teacher sees", demo.pixels(demo.x[i])),
                ("and says: target", classes(weak(demo)[i])),
                ("the student sees", demo.pixels(view[i])),
                ("and says", classes(student[i])),
            ]
        ],
    )


def cutmix(demo: Demo, path: Path) -> None:
    mean, std = demo.stats
    method = gmix.methods.CutMixSeg(demo.trained.net, mean=mean, std=std)
    pasted = method.cutmix(demo.x, seeded(3))
    view = pasted.apply(method.color(demo.x, seeded(3)))
    i, source, labels = FIRST, int(pasted.source[FIRST]), weak(demo)
    strip(
        path,
        [
            [
                ("image", demo.pixels(demo.x[i])),
                ("another", demo.pixels(demo.x[source])),
                ("the student sees", demo.pixels(view[i])),
                ("teacher, image", classes(labels[i])),
                ("target", classes(pasted.apply(labels)[i])),
            ]
        ],
    )


def classmix(demo: Demo, path: Path) -> None:
    pseudo = gmix.PseudoMask.of(weak(demo))
    chosen = half_of_classes(pseudo.labels, len(NAMES), seeded(0))
    rest = gmix.Pasted(~chosen, torch.arange(len(chosen)).roll(-1))
    i, source = FIRST, int(rest.source[FIRST])
    strip(
        path,
        [
            [
                ("image", demo.pixels(demo.x[i])),
                ("half of its classes", pseudo.labels[i].masked_fill(~chosen[i], 255).numpy()),
                ("another", demo.pixels(demo.x[source])),
                ("pasted", demo.pixels(rest.apply(demo.x)[i])),
                ("target", rest.apply(pseudo.labels)[i].numpy()),
            ]
        ],
    )


@torch.no_grad()
def cct(demo: Demo, path: Path) -> None:
    net = demo.trained.net
    method = CCT(net)
    x = F.interpolate(demo.x[FIRST : FIRST + 1], size=96, mode="bilinear")
    features = net.encode(x)
    z = features[-1]
    objects = object_map(G.probabilities(net.decode(features, (96, 96))), (96, 96), z.shape[2:])
    cells: list[Cell] = [("image", demo.pixels(x[0])), ("features", heat(z[0].norm(dim=0)))]
    for kind in ("noise", "feature_drop", "dropout", "cutout", "context", "objects"):
        disturbed = disturb(kind, z, objects, method.decoders[0], seeded(1))
        cells.append((kind, heat(disturbed[0].norm(dim=0))))
    strip(path, [cells[:4], cells[4:]])


@torch.no_grad()
def cps(demo: Demo, path: Path) -> None:
    one, other = (saved.net(demo.x).argmax(1) for saved in (demo.supervised, demo.trained))
    i = FIRST
    strip(
        path,
        [
            [
                ("both see", demo.pixels(demo.x[i])),
                ("one learns", other[i].numpy()),
                ("the other learns", one[i].numpy()),
                ("they differ", other[i].masked_fill(one[i] == other[i], 255).numpy()),
            ]
        ],
    )


def fixmatch(demo: Demo, path: Path) -> None:
    mean, std = demo.stats
    method = gmix.methods.FixMatch(demo.trained.net, mean=mean, std=std)
    with torch.no_grad():
        pseudo = gmix.PseudoMask.of(demo.trained.net(demo.x))
    view, pasted = method.strong(demo.x, seeded(7))
    i = FIRST
    strip(
        path,
        [
            [
                ("it labels", demo.pixels(demo.x[i])),
                ("all labels", pseudo.labels[i].numpy()),
                ("sure: above 0.95", sure(pseudo, i, method.threshold)),
                ("it learns on", demo.pixels(view[i])),
                ("target", sure(pseudo.paste(pasted), i, method.threshold)),
            ]
        ],
    )


def unimatch(demo: Demo, path: Path) -> None:
    mean, std = demo.stats
    method = gmix.methods.UniMatch(demo.trained.net, mean=mean, std=std)
    with torch.no_grad():
        pseudo = gmix.PseudoMask.of(demo.trained.net(demo.x))
    cells: list[Cell] = [("it labels", demo.pixels(demo.x[FIRST]))]
    for name, seed in (("one", 7), ("two", 4)):
        view, pasted = method.view(demo.x, seeded(seed))
        cells += [
            (f"strong view {name}", demo.pixels(view[FIRST])),
            (f"target {name}", sure(pseudo.paste(pasted), FIRST, method.threshold)),
        ]
    strip(path, [cells])


# The data flow ------------------------------------------------------------------------------------


def steps(demo: Demo, path: Path) -> None:
    """The eight steps of GuidedMix, each with what it makes of one scene."""
    guidance, i = guided(demo), FIRST
    assert guidance.mix is not None
    method, mean_std = demo.method, demo.stats
    x = demo.x[i : i + 1]
    color = gmix.StrongColor(mean=mean_std[0], std=mean_std[1], p=1.0)
    view, pasted = color(demo.x, seeded(1)), gmix.CutMix(p=1.0)(demo.x, seeded(2))
    student = demo.trained.net
    with torch.no_grad():
        said = student(pasted.apply(view))
        embedded = method.teacher.net.embed(torch.cat([x, guidance.partners.x[i : i + 1]]))
    ratio = F.interpolate(method.reference.likelihood(x), size=x.shape[2:], mode="bilinear")[0]
    vectors = [heat(v[: 5 * (len(v) // 5)].view(5, -1)) for v in embedded]

    figure = Figure(figsize=(11.2, 5.95), facecolor="white")
    FigureCanvasAgg(figure)
    side, left, top = 1.12, 0.12, 0.95
    across, down = 1.4, 1.65
    width, height = figure.get_size_inches()

    def corner(column: float, row: float) -> tuple[float, float]:
        return left + column * across, height - top - row * down - side

    def put(column: float, row: float, pixels: Pixels, caption: str, scale: float = 1.0) -> None:
        x0, y0 = corner(column, row)
        axes = figure.add_axes(
            (x0 / width, y0 / height, scale * side / width, scale * side / height)
        )
        axes.imshow(paint(pixels), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        text = textwrap.fill(caption, 15)
        figure.text(x0 / width, (y0 - 0.04) / height, text, size=11, color=INK, va="top")

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
        """From a point to another, in columns and rows: (0.5, 0.5) is the middle of the first cell."""
        a, b = ((left + p[0] * across, height - top - p[1] * down) for p in (start, end))
        figure.add_artist(
            FancyArrowPatch(
                (a[0] / width, a[1] / height),
                (b[0] / width, b[1] / height),
                transform=figure.transFigure,
                arrowstyle="-|>",
                mutation_scale=11,
                color=LINE,
                lw=1.4,
                connectionstyle=f"arc3,rad={bend}",
            )
        )

    names = ["1 embed", "2 pair", "3 mix", "4 predict", "5 decouple", "6 refer", "7 view", "8 loss"]
    for column, name in enumerate(names):
        x0 = left + column * across
        figure.text(x0 / width, 1 - 0.42 / height, name, size=13.5, weight="bold", color=INK)
    figure.text(
        left / width,
        1 - 0.7 / height,
        "the EMA teacher, in eval mode, without a gradient: steps 1 to 6 make the pseudo mask",
        size=11,
        color=PALE,
    )
    put(0, 0, demo.pixels(x[0]), "unlabeled image")
    put(0, 0.93, vectors[0], "embeddings", 0.48)
    put(0.42, 0.93, vectors[1], "", 0.48)
    labeled = [guidance.partners.x[i], *demo.x_labeled[:3]]
    tiles = [demo.pixels(image) for image in labeled]
    put(0, 2, np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]), "labeled images")
    put(1, 2, demo.pixels(guidance.partners.x[i]), "nearest: the partner")
    put(2, 1, demo.pixels(guidance.mix.image[i]), f"blend, lambda {guidance.mix.lam[i]:.2f}")
    put(3, 0, classes(guidance.direct[i]), "of the image: direct")
    put(3, 1, classes(guidance.mix.predicted[i]), "of the blend")
    put(
        4,
        1,
        classes(torch.lerp(guidance.mix.decoupled[i], guidance.direct[i], 0.5)),
        "rest, averaged",
    )
    put(4, 2, guidance.partners.y[i].numpy(), "minus lambda times its mask")
    put(5, 1, classes(guidance.pseudo[i]), "pseudo mask")
    put(5, 2, classes(ratio), "what alike pixels are")
    put(6, 0, demo.pixels(pasted.apply(view)[i]), "strong view")
    put(6, 1, classes(pasted.apply(guidance.pseudo)[i]), "pasted alike")
    put(7, 0, classes(said[i]), "the student says")
    confidence, labels = G.most_probable(guidance.pseudo)
    target = gmix.PseudoMask(labels, confidence).paste(pasted)
    put(7, 1, sure(target, i, method.threshold), "its sure labels")
    put(7, 2, demo.y_labeled[guidance.partners.chosen[i]].numpy(), "and labeled masks")

    centre = side / down / 2
    arrow((0.2, 0.9), (0.2, 1.28))
    arrow((0.6, 1.99), (0.6, 1.84))
    arrow((0.82, 2 + centre), (0.99, 2 + centre))
    arrow((1.5, 1.98), (1.98, 1.5))
    arrow((0.82, 0.5), (1.98, 1.2))
    arrow((0.82, 0.3), (2.98, 0.3))
    arrow((2.82, 1 + centre), (2.98, 1 + centre))
    arrow((3.82, 0.5), (3.99, 1.1))
    arrow((3.82, 1 + centre), (3.99, 1 + centre))
    arrow((4.4, 1.99), (4.4, 1.86))
    arrow((4.82, 1 + centre), (4.99, 1 + centre))
    arrow((5.4, 1.99), (5.4, 1.86))
    arrow((5.82, 1 + centre), (5.99, 1 + centre))
    arrow((0.5, -0.02), (6.3, -0.02), -0.04)
    arrow((6.82, centre), (6.99, centre))
    arrow((6.82, 1.2), (6.99, 0.6))
    save(rendered(figure, 110), path)


PICTURES: dict[str, Callable[[Demo, Path], None]] = {
    "result": result,
    "steps": steps,
    "mixer": mixer,
    "lambda": lambdas,
    "selector": selector,
    "attention": attention,
    "decoupler": decoupler,
    "reference": reference,
    "certainty": certainty,
    "ramp": ramp,
    "adjustment": adjustment,
    "teacher": teacher,
    "views": views,
    "boxes": boxes,
    "paste": paste,
    "supervised": supervised,
    "mean_teacher": mean_teacher,
    "cct": cct,
    "cutmix": cutmix,
    "classmix": classmix,
    "cps": cps,
    "fixmatch": fixmatch,
    "unimatch": unimatch,
}


def draw_all(run: Path, out: Path, names: Iterable[str] = PICTURES) -> None:
    """Draw pictures of the finished demo in `run` into `out`."""
    demo = open_demo(run)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        PICTURES[name](demo, out / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="--out folder of a finished `gmix demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    given = parser.parse_args()
    draw_all(given.run, given.out, given.only)


if __name__ == "__main__":
    main()
