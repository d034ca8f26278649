#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "opencv-python-headless==5.0.0.93",
#     "pi-heif==1.4.0",
#     "pillow==13.0.0",
#     "scikit-learn==1.9.1",
#     "torch==2.15.0",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure read.py on drawn photographs of digits.

    uv run tests/tools/handwriting.py --data-dir data/mnist --seed 7 --n 200
    uv run tests/tools/handwriting.py --kinds shadow:3,blank         some variants

MNIST digits are drawn with other pens, papers, lights and cameras, and read back. A row
is right if all its digits are, a blank page if it is refused. Printed are the accuracy,
the number of pictures, how many were refused, how many single digits were read as
several, and read.py's milliseconds a picture on one core.
"""

import argparse
import io
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
import predict  # for its reader of MNIST
import read

# %% Kinds of photographs
DARK = [(20, 20, 25), (30, 30, 90), (60, 20, 20), (70, 70, 70)]
BLUE = [(40, 60, 160), (60, 90, 190), (110, 140, 210), (70, 110, 170)]
WHITE = [(255, 255, 255), (248, 248, 250), (240, 240, 236)]
WARM = [(240, 225, 195), (225, 205, 170), (250, 238, 215)]
TABLES = [(20, 20, 20), (70, 45, 30), (110, 75, 50), (60, 80, 120)]
LINES = [(150, 180, 225), (225, 150, 150), (175, 175, 175), (120, 140, 190)]

# What several variants share: a phone's photo, and pages of an exercise book.
PHOTO = dict(size=(60, 200), ink=DARK + BLUE, light=0.2, sigma=(2, 10), jpeg=(60, 90))
BOOK = dict(PHOTO, ink=BLUE + DARK, light=0.3, turn=2, margin=(0.3, 2.5))
BOLD_LINES = dict(size=(100, 300), width=(1, 3), sigma=(0, 0))
FAR_PAGE = dict(
    size=(60, 150),
    canvas=(640, 480),
    pen=(0.04, 0.08),
    turn=3,
    sigma=(0, 8),
    jpeg=(60, 90),
)

# Kind -> variants. Pairs are ranges; "in digits" means in heights of the digit.
# - size: longer side of the digit in pixels; canvas: size of the whole picture,
#   instead of margin: paper on each side, in digits
# - pen: width of a thin stroke, thick: growth by a marker, in digits
# - contrast: ink blended towards the paper; grain: gaps in it; sigma: noise
# - light, vignette: darkening to a side and to the corners
# - shadow: what is left of the light in it; soft: its edge in pixels; band: its width
#   in pages, where it has two edges
# - lines: 1 ruled, 2 squared, with their pitch in digits; turn: of the lines in degrees
# - box: distance of a form's box in digits
# - table: width of what surrounds the page, in pages, and the angle of the page on it
# - exposure: the picture times the first number plus the second
# - row: this many digits beside each other; blank: no ink
KINDS = {
    "scanned": [
        dict(),
        dict(
            size=(40, 90),
            paper=[*WHITE, (215, 215, 215)],
            sigma=(0, 12),
            margin=(0.1, 2.5),
            jpeg=(50, 90),
        ),
        dict(size=(400, 600), margin=(0.2, 1.5), sigma=(0, 25)),
    ],
    "chalk": [
        dict(
            ink=[(255, 255, 255), (225, 225, 215)],
            paper=[(0, 0, 0), (20, 25, 22)],
            sigma=(0, 8),
        ),
        dict(
            size=(50, 250),
            ink=[(230, 225, 180), (200, 215, 235), (240, 190, 190)],
            grain=0.5,
            jpeg=(60, 90),
            paper=[(45, 75, 60), (60, 60, 65)],
            sigma=(4, 15),
            light=0.4,
            margin=(0.2, 2),
        ),
    ],
    "transparent": [
        dict(size=(60, 300), alpha=True),
        dict(size=(20, 60), alpha=True, ink=BLUE, margin=(0, 1)),
    ],
    "blue": [
        dict(size=(100, 300), ink=BLUE, paper=WARM, light=0.4, jpeg=(50, 90)),
        dict(
            size=(60, 400),
            ink=[(140, 165, 225), (150, 170, 230)],
            paper=WARM,
            light=0.5,
            sigma=(2, 10),
            jpeg=(50, 80),
            margin=(0.2, 2),
        ),
    ],
    "thin": [
        dict(size=(100, 300), pen=(0.03, 0.05), sigma=(0, 5)),
        dict(PHOTO, pen=(0.025, 0.06), ink=BLUE + DARK, sigma=(0, 10)),
    ],
    "thick": [
        dict(thick=(0.03, 0.05)),
        dict(
            size=(60, 400),
            thick=(0.02, 0.06),
            ink=[*DARK, (200, 30, 30), (30, 120, 60)],
            sigma=(0, 10),
            jpeg=(60, 90),
            margin=(0.2, 1.5),
        ),
    ],
    "pencil": [
        dict(size=(100, 300), contrast=(0.25, 0.45), sigma=(4, 12), grain=0.6),
        dict(
            size=(80, 250),
            contrast=(0.15, 0.3),
            sigma=(3, 10),
            grain=0.4,
            pen=(0.04, 0.09),
            light=0.2,
            jpeg=(60, 90),
        ),
        dict(size=(60, 150), contrast=(0.2, 0.3), sigma=(10, 18), margin=(0.3, 1)),
    ],
    "ruled": [
        dict(size=(80, 250), lines=1, pitch=(0.4, 1.3)),
        dict(BOOK, lines=1, pitch=(0.12, 0.5)),
        dict(
            BOLD_LINES,
            lines=1,
            pitch=(0.5, 1.5),
            line=[(90, 90, 100), (80, 100, 160), (200, 80, 80)],
        ),
        dict(FAR_PAGE, lines=1, pitch=(0.3, 0.8)),
    ],
    "squared": [
        dict(size=(80, 250), lines=2, pitch=(0.2, 0.7)),
        dict(BOOK, lines=2, pitch=(0.1, 0.3)),
        dict(
            BOLD_LINES,
            lines=2,
            pitch=(0.3, 1.2),
            line=[(100, 110, 130), (80, 100, 180)],
        ),
        dict(FAR_PAGE, lines=2, pitch=(0.2, 0.5)),
    ],
    "shadow": [
        dict(size=(80, 250), shadow=(0.4, 0.7), soft=(0, 2)),
        dict(
            PHOTO,
            shadow=(0.3, 0.8),
            soft=(2, 25),
            light=0.3,
            jpeg=(50, 90),
            margin=(0.3, 2.5),
        ),
        dict(
            size=(60, 200),
            shadow=(0.5, 0.8),
            soft=(0, 8),
            canvas=(640, 480),
            sigma=(0, 10),
            paper=WARM + WHITE,
            pen=(0.05, 0.1),
        ),
        dict(
            size=(60, 200),
            shadow=(0.4, 0.8),
            soft=(0, 8),
            band=(0.2, 0.6),
            margin=(0.3, 2),
            sigma=(0, 8),
        ),
    ],
    "small": [
        dict(
            size=(45, 60), canvas=(1600, 1200), light=0.4, sigma=(8, 20), jpeg=(60, 90)
        ),
        dict(
            size=(40, 55),
            canvas=(1200, 1600),
            light=0.5,
            vignette=0.4,
            sigma=(15, 25),
            jpeg=(50, 80),
            ink=DARK + BLUE,
            paper=WARM + WHITE,
        ),
        dict(
            size=(45, 60),
            canvas=(1600, 1200),
            light=0.3,
            sigma=(5, 15),
            pen=(0.06, 0.1),
            jpeg=(50, 90),
        ),
    ],
    "cropped": [
        dict(margin=(0, 0)),
        dict(
            size=(40, 120),
            margin=(0, 0),
            sigma=(2, 12),
            jpeg=(50, 90),
            thick=(0, 0.03),
            ink=DARK + BLUE,
            paper=WARM + WHITE,
        ),
        dict(
            size=(100, 300), margin=(0, 0.02), pen=(0.04, 0.08), light=0.3, sigma=(0, 0)
        ),
    ],
    "tilted": [
        dict(tilt=15),
        dict(BOOK, tilt=15, sigma=(2, 12), pen=(0.05, 0.1), margin=(0.2, 2)),
    ],
    "framed": [
        dict(table=(0.005, 0.05, 0)),
        dict(PHOTO, size=(60, 300), table=(0.05, 0.15, 10), paper=WHITE + WARM),
    ],
    "dim": [
        dict(exposure=(0.35, 0)),
        dict(PHOTO, table=(0.02, 0.1, 5), paper=WHITE + WARM, exposure=(0.35, 0)),
    ],
    "washed out": [
        dict(exposure=(0.4, 140)),
        dict(PHOTO, table=(0.02, 0.1, 5), paper=WHITE + WARM, exposure=(0.4, 140)),
    ],
    "boxed": [
        dict(box=(0.1, 0.5), margin=(0.6, 2), line=DARK + BLUE, width=(2, 6)),
        dict(PHOTO, box=(0.05, 0.3), margin=(0.4, 2), width=(2, 4)),
    ],
    "mixed": [
        dict(size=(80, 200), lines=1, pitch=(0.3, 1), shadow=(0.5, 0.8), soft=(0, 6)),
        dict(
            size=(80, 200),
            lines=2,
            pitch=(0.2, 0.6),
            contrast=(0.35, 0.5),
            sigma=(2, 6),
            light=0.3,
            line=[(190, 205, 230), (215, 215, 215)],
        ),
        dict(
            size=(60, 200),
            ink=[(240, 240, 240)],
            paper=[(40, 70, 55)],
            shadow=(0.5, 0.8),
            soft=(0, 10),
            tilt=10,
            sigma=(2, 8),
            jpeg=(60, 90),
        ),
        dict(
            size=(50, 70),
            canvas=(1200, 900),
            lines=1,
            pitch=(0.6, 1.2),
            light=0.4,
            sigma=(5, 12),
            jpeg=(60, 90),
        ),
    ],
    "edge": [dict(margin=(0.01, 0.05)), dict(PHOTO, margin=(0.01, 0.08))],
    "blank": [
        dict(size=(50, 300), blank=True, sigma=(0, 0)),
        dict(size=(50, 300), blank=True, sigma=(3, 25)),
        dict(size=(50, 300), blank=True, light=0.6, vignette=0.5, sigma=(0, 8)),
        dict(
            size=(50, 300),
            blank=True,
            light=0.3,
            paper=WHITE + WARM,
            sigma=(2, 12),
            jpeg=(60, 95),
        ),
        dict(
            size=(50, 200), blank=True, lines=1, pitch=(0.3, 1), light=0.2, sigma=(0, 8)
        ),
        dict(
            size=(50, 200),
            blank=True,
            lines=2,
            pitch=(0.1, 0.25),
            light=0.2,
            sigma=(0, 8),
        ),
    ],
    "row": [
        dict(size=(60, 200), row=count, sigma=(0, 8), light=0.2) for count in (2, 3, 4)
    ],
    "others": [dict()],
}


# %% Drawing
def to_tensor(image: Image.Image) -> torch.Tensor:
    """A grey image to (h, w) float32, 0 to 1."""
    return torch.tensor(np.asarray(image)) / 255


def to_image(pixels: torch.Tensor) -> Image.Image:
    """(h, w) or (h, w, 3 or 4) float32, 0 to 255, to a grey, RGB or RGBA image."""
    return Image.fromarray(pixels.round().byte().numpy())


def blend(under, over, cover):
    return under * (1 - cover) + over * cover


def resize(image: Image.Image, side: int, least: int, resample) -> Image.Image:
    """The image, its longer side `side` pixels and its other one at least `least`."""
    return image.resize(
        [max(least, round(length * (side / max(image.size)))) for length in image.size],
        resample,
    )


def thinned(mask: torch.Tensor) -> torch.Tensor:
    """Thin a (h, w) bool mask, empty at its border, to lines one pixel wide.

    Zhang and Suen (1984).
    """
    before = None
    while before is None or not torch.equal(before, mask):
        before = mask
        for first in (True, False):
            steps = (
                (1, 0),
                (1, -1),
                (0, -1),
                (-1, -1),
                (-1, 0),
                (-1, 1),
                (0, 1),
                (1, 1),
            )
            ring = [
                mask.roll(step, (0, 1)) for step in steps
            ]  # the neighbours, clockwise from the north
            north, _, east, _, south, _, west, _ = ring
            count, starts = (
                sum(ring),
                sum(a < b for a, b in zip(ring, ring[1:] + ring[:1], strict=True)),
            )
            keep = (
                (east & south & (north | west))
                if first
                else (north & west & (east | south))
            )
            mask = mask & (keep | (count < 2) | (count > 6) | (starts != 1))
    return mask


def draw_strokes(
    digit: torch.Tensor, rng, size: int, pen=None, thick=None, tilt=0
) -> torch.Tensor:
    """A (28, 28) uint8 digit to (h, w) float32 coverage with ink.

    It is cropped, its longer side `size` pixels.
    """
    image = Image.fromarray(digit.numpy())
    image = ImageOps.expand(
        resize(image.crop(image.getbbox()), 100, 8, Image.Resampling.BICUBIC), 30
    )
    if tilt:
        image = image.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC)
    ink = to_tensor(image.filter(ImageFilter.GaussianBlur(1.5)))
    if pen:  # the middle line of the strokes, drawn again with a pen of one width
        line = thinned(ink > 0.35)
        distance = cv2.distanceTransform(
            (~line).byte().numpy(), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )
        ink = (rng.uniform(*pen) * 50 + 0.5 - torch.tensor(distance)).clamp(0, 1)
    else:
        ink = ((ink - 0.5) * rng.uniform(2, 6) + 0.5).clamp(
            0, 1
        )  # MNIST's soft edges -> a pen's
    if thick:
        radius = round(rng.uniform(*thick) * 100)
        ink = F.max_pool2d(ink[None], 2 * radius + 1, 1, radius)
        ink = ((F.avg_pool2d(ink, 7, 1, 3)[0] - 0.5) * 3 + 0.5).clamp(0, 1)
    image = to_image(255 * ink)
    image = image.crop(image.point(lambda value: 255 * (value > 60)).getbbox())
    return to_tensor(resize(image, size, 2, Image.Resampling.LANCZOS))


def draw_row(digits, rng, size: int, **strokes) -> torch.Tensor:
    """Digits beside each other, centred, as (h, w) float32 coverage with ink."""
    inks = [draw_strokes(digit, rng, size, **strokes) for digit in digits]
    gap = round(rng.uniform(0.25, 0.6) * size) if len(inks) > 1 else 0
    room = [max(map(len, inks)) - len(ink) for ink in inks]
    padded = [
        F.pad(ink, (0, gap, free // 2, free - free // 2))
        for ink, free in zip(inks, room, strict=True)
    ]
    return torch.cat(padded, 1)[:, : -gap or None]


def draw_lines(
    rng, shape, squared: bool, step: float, width: int, angle: float
) -> torch.Tensor:
    """Ruled or squared paper's lines, as (h, w) float32 coverage."""
    height, breadth = shape
    side = 2 * (breadth + height)  # room to turn it
    page = Image.new("L", (side, side))
    pen, offset = ImageDraw.Draw(page), rng.uniform(0, step)
    for at in (offset + k * step for k in range(int(side / step))):
        pen.line([(0, at), (side, at)], 255, width)
        if squared:
            pen.line([(at, 0), (at, side)], 255, width)
    if angle:
        page = page.rotate(angle, Image.Resampling.BICUBIC)
    x, y = (side - breadth) // 2, (side - height) // 2
    return to_tensor(page.crop((x, y, x + breadth, y + height)))


def draw_light(rng, shape, light, vignette, shadow, soft, band) -> torch.Tensor:
    """What the light multiplies each pixel by, (h, w) float32.

    It is uneven, darker in the corners, with a shadow.
    """
    height, breadth = shape
    shorter = min(shape)
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, breadth)[None]

    def slope(high, wide):
        angle = torch.tensor(rng.uniform(0, 6.3))
        return angle.cos() * x * wide + angle.sin() * y * high

    lamp = (1 + slope(1, 1) / 1.4) / 2
    lamp = (
        1
        - light * rng.uniform(0.3, 1) * lamp
        - vignette * rng.uniform(0.3, 1) * (x * x + y * y) / 2
    )
    if shadow:
        distance = slope(height, breadth) / 2 - rng.uniform(0, 0.7) * shorter / 2
        if band:  # the shadow of a pen or an arm: two edges
            distance = rng.uniform(*band) * shorter / 2 - distance.abs()
        lamp = lamp * (
            1
            - (1 - rng.uniform(*shadow))
            * torch.sigmoid(distance / max(0.3, rng.uniform(*soft) / 2))
        )
    return lamp


def photograph(page, rng, table, exposure, jpeg) -> Image.Image:
    """The page with a table around it, brighter or darker, as a JPEG."""
    if table:
        around = rng.choice(TABLES)
        border = max(1, round(rng.uniform(*table[:2]) * min(page.size)))
        page = ImageOps.expand(page, border, around)
        angle = rng.uniform(-table[2], table[2])
        page = page.rotate(angle, Image.Resampling.BICUBIC, fillcolor=around)
    if exposure:
        page = page.point(lambda value: exposure[0] * value + exposure[1])
    if jpeg:
        page.save(file := io.BytesIO(), "JPEG", quality=rng.randint(*jpeg))
        page = Image.open(file)
    return page


def draw(
    digits,
    rng,
    size=(80, 300),
    margin=(0.15, 1),
    canvas=None,
    ink=DARK,
    paper=WHITE,
    contrast=None,
    light=0,
    vignette=0,
    shadow=None,
    soft=(0, 1),
    band=None,
    lines=0,
    pitch=(0.3, 1),
    line=LINES,
    width=(1, 2),
    turn=0,
    sigma=(0, 6),
    grain=0,
    jpeg=None,
    alpha=False,
    table=None,
    box=None,
    row=1,
    blank=False,
    exposure=None,
    **strokes,
) -> Image.Image:
    """A photographed digit, the first of `digits`, or a row of them.

    KINDS describes the options. The order of the calls of `rng` makes the picture:
    another one changes all figures that were measured.
    """

    def choose(colours):
        return torch.tensor(rng.choice(colours)).float().view(3, 1, 1)

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = rng.randint(*size)
    if blank:
        cover = torch.zeros(size, size)
    else:
        cover = draw_row(digits[:row], rng, size, **strokes)
    h, w = cover.shape
    left, right, top, bottom = (round(rng.uniform(*margin) * size) for _ in range(4))
    if canvas:
        left, top = rng.randint(5, canvas[0] - w - 5), rng.randint(5, canvas[1] - h - 5)
        right, bottom = canvas[0] - w - left, canvas[1] - h - top
    cover = F.pad(cover, (left, right, top, bottom))
    height, breadth = shape = cover.shape
    colour, page = choose(ink), choose(paper)
    if alpha:
        layers = torch.cat([colour.expand(3, *shape), 255 * cover[None]])
        return to_image(layers.permute(1, 2, 0))
    if contrast:
        strength = rng.uniform(*contrast)
        colour = blend(page, choose([(0, 0, 0), (20, 20, 25)]), strength)
    if lines:
        step = max(5, rng.uniform(*pitch) * size)
        thickness, angle = rng.randint(*width), rng.uniform(-turn, turn)
        rules = draw_lines(rng, shape, lines == 2, step, thickness, angle)
        page = blend(page, choose(line), rules)
    if box:
        gap = round(rng.uniform(*box) * size)
        start = max(0, left - gap), max(0, top - gap)
        end = min(breadth, left + w + gap) - 1, min(height, top + h + gap) - 1
        rules = Image.new("L", (breadth, height))
        ImageDraw.Draw(rules).rectangle((start, end), None, 255, rng.randint(*width))
        page = blend(page, choose(line), to_tensor(rules))
    if grain:  # chalk and pencil skip over the paper's tooth
        tooth = torch.rand(1, 1, height // 2 + 1, breadth // 2 + 1, generator=generator)
        cover = cover * (1 - grain * F.interpolate(tooth, shape, mode="bilinear")[0, 0])
    lamp = draw_light(rng, shape, light, vignette, shadow, soft, band)
    page = blend(page, colour, cover) * lamp
    noise = rng.uniform(*sigma)
    channels = 1 if rng.random() < 0.5 else 3  # grey or coloured noise
    page = page + noise * torch.randn(channels, *shape, generator=generator)
    image = to_image(page.clamp(0, 255).permute(1, 2, 0))
    return photograph(image, rng, table, exposure, jpeg)


def draw_others() -> tuple[list[Image.Image], list[int]]:
    """scikit-learn's 1,797 digits of other writers and their labels.

    They are 8×8, here enlarged, dark on white.
    """
    from sklearn.datasets import load_digits  # test_read.py does without it

    digits = load_digits()
    images = [
        Image.fromarray((255 - digit * 15.9375).clip(0, 255).astype("uint8"))
        for digit in digits.images
    ]
    images = [image.resize((200, 200), Image.Resampling.LANCZOS) for image in images]
    return [
        ImageOps.expand(image, 30, "white") for image in images
    ], digits.target.tolist()


# %% Measuring
class Measurement(NamedTuple):
    """How many pictures of a kind were right, out of n; and where it went wrong."""

    right: int
    n: int
    refused: int
    several: int  # more digits read than there are
    milliseconds: float  # of one picture, decoding included

    @property
    def accuracy(self) -> float:
        return 100 * self.right / self.n


def measure(model, ink, photos: list[Image.Image], texts: list[str]) -> Measurement:
    """Read the photos, whose digits are in `texts`: "" for a blank page."""
    right = refused = several = 0
    spent = 0.0
    for photo, text in zip(photos, texts, strict=True):
        photo.save(file := io.BytesIO(), photo.format or "PNG", quality="keep")
        file.seek(0)
        started = time.perf_counter()
        try:
            lines = read.read_picture(model, ink, file)["lines"]
            found = "".join(line["text"] for line in lines)
        except read.Error:
            found = ""
        spent += time.perf_counter() - started
        right += found == text
        refused += not found
        several += len(found) > len(text) > 0
    n = len(photos)
    return Measurement(right, n, refused, several, 1000 * spent / n)


def draw_variant(kind: str, number: int, digits, seed: int, n: int) -> tuple:
    """`n` photos of a kind's variant, and their texts."""
    if kind == "others":
        photos, labels = draw_others()
        return photos, [str(label) for label in labels]
    images, labels = digits
    options = KINDS[kind][number]
    rng = random.Random(f"{seed}{kind}{number}")
    everything = range(len(labels))
    photos, texts = [], []
    for first in rng.sample(everything, min(n, len(labels))):
        four = [first, *rng.sample(everything, 3)]
        photos.append(draw(images[four], rng, **options))
        shown = 0 if options.get("blank") else options.get("row", 1)
        texts.append("".join(str(int(label)) for label in labels[four[:shown]]))
    return photos, texts


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    sample = REPO / "data/sample"
    weights = REPO / "data/mnist_cnn.pt"
    add("--data-dir", type=Path, default=sample, help="digits to draw")
    add("--split", choices=["train", "test"], default="test", help="of them")
    add("--kinds", default=",".join(KINDS), help="chalk, or chalk:1 for its second")
    add("--n", type=int, default=200, help="drawings of each variant")
    add("--seed", type=int, default=0, help="of the drawing")
    add("--weights", default=str(weights), help="state_dict to read them with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = read.load_weights(args.weights)
    digits = predict.load(args.data_dir, args.split)
    print("kind | accuracy | n | refused | several | ms a picture")
    print("---|---|---|---|---|---")
    for name in args.kinds.split(","):
        kind, _, only = name.partition(":")
        for number in [int(only)] if only else range(len(KINDS[kind])):
            drawn = draw_variant(kind, number, digits, args.seed, args.n)
            m = measure(model, None, *drawn)
            cells = f"{m.accuracy:.2f} | {m.n} | {m.refused} | {m.several}"
            print(f"{kind}:{number} | {cells} | {m.milliseconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
