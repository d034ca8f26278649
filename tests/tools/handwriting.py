#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "opencv-python-headless==5.0.0.93",
#     "pi-heif==1.4.0",
#     "pillow==13.0.0",
#     "torch==2.15.0",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure read.py on drawn photographs of digits.

    uv run tests/tools/handwriting.py --data-dir data/mnist --seed 7 --kinds ruled,row

MNIST digits are drawn with other pens, papers, lights and cameras, and read back. A row
is right if all its digits are, a blank page if it is refused. One core is used.
"""

import argparse
import ast
import io
import random
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from PIL.Image import Resampling

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
import predict  # for its reader of MNIST
import read

# %% Kinds of photographs
COLOURS = {
    "dark": [(20, 20, 25), (30, 30, 90), (60, 20, 20), (70, 70, 70)],
    "blue": [(40, 60, 160), (60, 90, 190), (110, 140, 210), (70, 110, 170)],
    "pale": [(140, 165, 225), (150, 170, 230)],
    "red": [(200, 30, 30), (30, 120, 60)],
    "chalk": [(255, 255, 255), (225, 225, 215)],
    "pastel": [(230, 225, 180), (200, 215, 235), (240, 190, 190)],
    "ash": [(240, 240, 240)],
    "white": [(255, 255, 255), (248, 248, 250), (240, 240, 236)],
    "grey": [(215, 215, 215)],
    "warm": [(240, 225, 195), (225, 205, 170), (250, 238, 215)],
    "black": [(0, 0, 0), (20, 25, 22)],
    "board": [(45, 75, 60), (60, 60, 65)],
    "green": [(40, 70, 55)],
    "table": [(20, 20, 20), (70, 45, 30), (110, 75, 50), (60, 80, 120)],
    "lines": [(150, 180, 225), (225, 150, 150), (175, 175, 175), (120, 140, 190)],
    "strong": [(90, 90, 100), (80, 100, 160), (200, 80, 80)],
    "bold": [(100, 110, 130), (80, 100, 180)],
    "faint": [(190, 205, 230), (215, 215, 215)],
}


class Style(NamedTuple):
    """How digits are written and photographed; lengths are in heights of a digit."""

    size: tuple = (80, 300)  # pixels of the digit's longer side
    margin: tuple = (0.15, 1)  # paper on each side
    canvas: tuple = ()  # pixels of the whole picture, in place of a margin
    row: int = 1  # digits beside each other, 0 for blank paper
    ink: list = COLOURS["dark"]
    pen: tuple = ()  # width of the strokes, in place of MNIST's
    grow: tuple = ()  # of the strokes on both sides, as by a marker
    tilt: float = 0  # degrees
    contrast: tuple = ()  # 0: the paper's colour, 1: black
    grain: float = 0  # gaps in the ink
    alpha: bool = False  # ink on nothing
    paper: list = COLOURS["white"]
    ruled: tuple = ()  # distance of lines
    squared: tuple = ()  # distance of lines both ways
    box: tuple = ()  # distance of a form's box
    line: list = COLOURS["lines"]  # colour of all three
    width: tuple = (1, 2)  # pixels of all three
    turn: float = 0  # degrees of the lines
    light: float = 0  # darkening to a side
    corners: float = 0  # darkening to the corners
    shadow: tuple = ()  # what is left of the light in it
    soft: tuple = (0, 1)  # pixels of its edge
    band: tuple = ()  # its width in pages, where it has two edges
    noise: tuple = (0, 6)  # its deviation, of 255
    table: tuple = ()  # its width around the page, in pages; degrees of the page
    exposure: tuple = ()  # factor of the brightness, and what is added
    jpeg: tuple = ()  # quality


PHOTO = "size 60-200, ink dark+blue, light 0.2, noise 2-10, jpeg 60-90"
BOOK = f"{PHOTO}, ink blue+dark, light 0.3, turn 2, margin 0.3-2.5"
FAR = "size 60-150, canvas 640×480, pen 0.04-0.08, turn 3, noise 0-8, jpeg 60-90"
# A variant a line: a-b is a range, and the last of a name counts.
VARIANTS = f"""
scanned: size 80-300
scanned: size 40-90, paper white+grey, noise 0-12, margin 0.1-2.5, jpeg 50-90
scanned: size 400-600, margin 0.2-1.5, noise 0-25
chalk: ink chalk, paper black, noise 0-8
chalk: {PHOTO}, size 50-250, ink pastel, grain 0.5, paper board, noise 4-15, \
    light 0.4, margin 0.2-2
transparent: size 60-300, alpha 1
transparent: size 20-60, alpha 1, ink blue, margin 0-1
blue: size 100-300, ink blue, paper warm, light 0.4, jpeg 50-90
blue: {PHOTO}, size 60-400, ink pale, paper warm, light 0.5, jpeg 50-80, margin 0.2-2
thin: size 100-300, pen 0.03-0.05, noise 0-5
thin: {PHOTO}, pen 0.025-0.06, ink blue+dark, noise 0-10
thick: grow 0.03-0.05
thick: size 60-400, grow 0.02-0.06, ink dark+red, noise 0-10, jpeg 60-90, margin 0.2-1.5
pencil: size 100-300, contrast 0.25-0.45, noise 4-12, grain 0.6
pencil: size 80-250, contrast 0.15-0.3, noise 3-10, grain 0.4, pen 0.04-0.09, \
    light 0.2, jpeg 60-90
pencil: size 60-150, contrast 0.2-0.3, noise 10-18, margin 0.3-1
ruled: size 80-250, ruled 0.4-1.3
ruled: {BOOK}, ruled 0.12-0.5
ruled: size 100-300, width 1-3, noise 0-0, ruled 0.5-1.5, line strong
ruled: {FAR}, ruled 0.3-0.8
squared: size 80-250, squared 0.2-0.7
squared: {BOOK}, squared 0.1-0.3
squared: size 100-300, width 1-3, noise 0-0, squared 0.3-1.2, line bold
squared: {FAR}, squared 0.2-0.5
shadow: size 80-250, shadow 0.4-0.7, soft 0-2
shadow: {PHOTO}, shadow 0.3-0.8, soft 2-25, light 0.3, jpeg 50-90, margin 0.3-2.5
shadow: size 60-200, shadow 0.5-0.8, soft 0-8, canvas 640×480, noise 0-10, \
    paper warm+white, pen 0.05-0.1
shadow: size 60-200, shadow 0.4-0.8, soft 0-8, band 0.2-0.6, margin 0.3-2, noise 0-8
small: size 45-60, canvas 1600×1200, light 0.4, noise 8-20, jpeg 60-90
small: size 40-55, canvas 1200×1600, light 0.5, corners 0.4, noise 15-25, jpeg 50-80, \
    ink dark+blue, paper warm+white
small: size 45-60, canvas 1600×1200, light 0.3, noise 5-15, pen 0.06-0.1, jpeg 50-90
cropped: margin 0-0
cropped: {PHOTO}, size 40-120, margin 0-0, light 0, noise 2-12, jpeg 50-90, \
    grow 0-0.03, paper warm+white
cropped: size 100-300, margin 0-0.02, pen 0.04-0.08, light 0.3, noise 0-0
tilted: tilt 15
tilted: {BOOK}, tilt 15, noise 2-12, pen 0.05-0.1, margin 0.2-2
framed: table 0.005-0.05 0°
framed: {PHOTO}, size 60-300, paper white+warm, table 0.05-0.15 10°
dim: exposure 0.35 0
dim: {PHOTO}, table 0.02-0.1 5°, paper white+warm, exposure 0.35 0
washed out: exposure 0.4 140
washed out: {PHOTO}, table 0.02-0.1 5°, paper white+warm, exposure 0.4 140
boxed: box 0.1-0.5, margin 0.6-2, line dark+blue, width 2-6
boxed: {PHOTO}, box 0.05-0.3, margin 0.4-2, width 2-4
mixed: size 80-200, ruled 0.3-1, shadow 0.5-0.8, soft 0-6
mixed: size 80-200, squared 0.2-0.6, contrast 0.35-0.5, noise 2-6, light 0.3, line faint
mixed: {PHOTO}, ink ash, paper green, shadow 0.5-0.8, soft 0-10, light 0, tilt 10, \
    noise 2-8
mixed: size 50-70, canvas 1200×900, ruled 0.6-1.2, light 0.4, noise 5-12, jpeg 60-90
edge: margin 0.01-0.05
edge: {PHOTO}, margin 0.01-0.08
blank: size 50-300, row 0, noise 0-0
blank: size 50-300, row 0, noise 3-25
blank: size 50-300, row 0, light 0.6, corners 0.5, noise 0-8
blank: size 50-300, row 0, light 0.3, paper white+warm, noise 2-12, jpeg 60-95
blank: size 50-200, row 0, light 0.2, noise 0-8, ruled 0.3-1
blank: size 50-200, row 0, light 0.2, noise 0-8, squared 0.1-0.25
row: size 60-200, row 2, noise 0-8, light 0.2
row: size 60-200, row 3, noise 0-8, light 0.2
row: size 60-200, row 4, noise 0-8, light 0.2
"""


def parse(text: str) -> Style:
    """The style of "size 80-250, ink dark+blue, light 0.4"."""
    options = {}
    for option in text.split(","):
        name, value = option.split(maxsplit=1)
        values = [ast.literal_eval(x) for x in re.findall(r"[\d.]+", value)]
        if not values:
            values = [c for colours in value.split("+") for c in COLOURS[colours]]
        elif len(values) == 1:
            [values] = values
        options[name] = values
    return Style(**options)


KINDS = {}  # the styles of each
for variant in VARIANTS.strip().splitlines():
    kind, _, style = variant.partition(": ")
    KINDS.setdefault(kind, []).append(parse(style))


# %% Drawing: another order of the calls of `rng` would change all pictures and figures
def to_tensor(image: Image.Image) -> torch.Tensor:
    """A grey image to (h, w) float32, 0 to 1."""
    return torch.tensor(np.asarray(image)) / 255


def to_image(pixels: torch.Tensor) -> Image.Image:
    """(h, w) or (h, w, 3 or 4) float32, 0 to 255, to a grey, RGB or RGBA image."""
    return Image.fromarray(pixels.round().byte().numpy())


def resize(image: Image.Image, side: int, least: int, resample) -> Image.Image:
    """The image, its longer side `side` pixels and its other one at least `least`."""
    size = [max(least, round(n * (side / max(image.size)))) for n in image.size]
    return image.resize(size, resample)


def thinned(mask: torch.Tensor) -> torch.Tensor:
    """Thin ink, (h, w) bool, to lines one pixel wide (Zhang and Suen 1984)."""
    steps = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)]
    before = ~mask
    while not torch.equal(before, mask):
        before = mask
        for turned in (steps, steps[4:] + steps[:4]):
            ring = [mask.roll(step, (0, 1)) for step in turned]  # clockwise
            north, _, east, _, south, _, west, _ = ring
            pairs = zip(ring, ring[1:] + ring[:1], strict=True)
            count, starts = sum(ring), sum(a < b for a, b in pairs)
            keep = east & south & (north | west)
            mask = mask & (keep | (count < 2) | (count > 6) | (starts != 1))
    return mask


def draw_strokes(digit: torch.Tensor, rng, size: int, style: Style) -> torch.Tensor:
    """A (28, 28) uint8 digit, cropped, to (h, w) float32 coverage with ink."""
    image = Image.fromarray(digit.numpy())
    image = resize(image.crop(image.getbbox()), 100, 8, Resampling.BICUBIC)
    image = ImageOps.expand(image, 30)
    if style.tilt:
        image = image.rotate(rng.uniform(-style.tilt, style.tilt), Resampling.BICUBIC)
    ink = to_tensor(image.filter(ImageFilter.GaussianBlur(1.5)))
    if style.pen:  # the middle line of the strokes, drawn again with one width
        paper = (~thinned(ink > 0.35)).byte().numpy()
        distance = cv2.distanceTransform(paper, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ink = rng.uniform(*style.pen) * 50 + 0.5 - torch.tensor(distance)
    else:  # MNIST's soft edges become a pen's
        ink = (ink - 0.5) * rng.uniform(2, 6) + 0.5
    ink = ink.clamp(0, 1)
    if style.grow:
        radius = round(rng.uniform(*style.grow) * 100)
        ink = F.max_pool2d(ink[None], 2 * radius + 1, 1, radius)
        ink = ((F.avg_pool2d(ink, 7, 1, 3)[0] - 0.5) * 3 + 0.5).clamp(0, 1)
    image = to_image(255 * ink)
    image = image.crop(image.point(lambda value: 255 * (value > 60)).getbbox())
    return to_tensor(resize(image, size, 2, Resampling.LANCZOS))


def draw_row(digits, rng, size: int, style: Style) -> torch.Tensor:
    """Digits beside each other, centred, as (h, w) float32 coverage with ink."""
    inks = [draw_strokes(digit, rng, size, style) for digit in digits[: style.row]]
    inks = inks or [torch.zeros(size, size)]
    gap = round(rng.uniform(0.25, 0.6) * size) if len(inks) > 1 else 0
    height, padded = max(map(len, inks)), []
    for ink in inks:
        free = height - len(ink)
        padded.append(F.pad(ink, (gap, 0, free // 2, free - free // 2)))
    return torch.cat(padded, 1)[:, gap:]


def draw_lines(rng, shape, size: int, style: Style) -> torch.Tensor:
    """Ruled or squared paper's lines, as (h, w) float32 coverage."""
    step = max(5, rng.uniform(*(style.ruled or style.squared)) * size)
    width, angle = rng.randint(*style.width), rng.uniform(-style.turn, style.turn)
    height, breadth = shape
    side = 2 * (breadth + height)  # room to turn it
    page = Image.new("L", (side, side))
    pen, offset = ImageDraw.Draw(page), rng.uniform(0, step)
    for at in (offset + k * step for k in range(int(side / step))):
        pen.line([(0, at), (side, at)], 255, width)
        if style.squared:
            pen.line([(at, 0), (at, side)], 255, width)
    page = page.rotate(angle, Resampling.BICUBIC)
    x, y = (side - breadth) // 2, (side - height) // 2
    return to_tensor(page.crop((x, y, x + breadth, y + height)))


def draw_light(rng, shape, style: Style) -> torch.Tensor:
    """What the light multiplies each pixel by, (h, w) float32."""
    height, breadth = shape
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, breadth)[None]

    def slope(high, wide):
        angle = torch.tensor(rng.uniform(0, 6.3))
        return angle.cos() * x * wide + angle.sin() * y * high

    side = (1 + slope(1, 1) / 1.4) / 2
    lamp = 1 - style.light * rng.uniform(0.3, 1) * side
    lamp = lamp - style.corners * rng.uniform(0.3, 1) * (x * x + y * y) / 2
    if style.shadow:
        distance = slope(height, breadth) / 2 - rng.uniform(0, 0.7) * min(shape) / 2
        if style.band:  # the shadow of a pen or an arm: two edges
            distance = rng.uniform(*style.band) * min(shape) / 2 - distance.abs()
        loss = 1 - rng.uniform(*style.shadow)
        soft = max(0.3, rng.uniform(*style.soft) / 2)
        lamp = lamp * (1 - loss * torch.sigmoid(distance / soft))
    return lamp


def photograph(page: Image.Image, rng, style: Style) -> Image.Image:
    """The page with a table around it, brighter or darker, as a JPEG."""
    if style.table:
        *width, turn = style.table
        around = rng.choice(COLOURS["table"])
        border = max(1, round(rng.uniform(*width) * min(page.size)))
        page = ImageOps.expand(page, border, around)
        angle = rng.uniform(-turn, turn)
        page = page.rotate(angle, Resampling.BICUBIC, fillcolor=around)
    if style.exposure:
        factor, offset = style.exposure
        page = page.point(lambda value: factor * value + offset)
    if style.jpeg:
        page.save(file := io.BytesIO(), "JPEG", quality=rng.randint(*style.jpeg))
        page = Image.open(file)
    return page


def draw(digits, rng, style: Style) -> Image.Image:
    """A photograph of the first of (N, 28, 28) uint8 digits."""

    def choose(colours):
        return torch.tensor(rng.choice(colours)).float().view(3, 1, 1)

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = rng.randint(*style.size)
    cover = draw_row(digits, rng, size, style)
    h, w = cover.shape
    margins = [round(rng.uniform(*style.margin) * size) for _ in range(4)]
    left, right, top, bottom = margins
    if style.canvas:
        width, height = style.canvas
        left, top = rng.randint(5, width - w - 5), rng.randint(5, height - h - 5)
        right, bottom = width - w - left, height - h - top
    cover = F.pad(cover, (left, right, top, bottom))
    height, width = shape = cover.shape
    colour, page = choose(style.ink), choose(style.paper)
    if style.alpha:
        layers = torch.cat([colour.expand(3, *shape), 255 * cover[None]])
        return to_image(layers.permute(1, 2, 0))
    if style.contrast:
        strength = rng.uniform(*style.contrast)
        colour = page * (1 - strength) + choose([(0, 0, 0), (20, 20, 25)]) * strength
    if style.ruled or style.squared:
        rules = draw_lines(rng, shape, size, style)
        page = page * (1 - rules) + choose(style.line) * rules
    if style.box:
        gap = round(rng.uniform(*style.box) * size)
        start = max(0, left - gap), max(0, top - gap)
        end = min(width, left + w + gap) - 1, min(height, top + h + gap) - 1
        image, pen = Image.new("L", (width, height)), rng.randint(*style.width)
        ImageDraw.Draw(image).rectangle((start, end), None, 255, pen)
        rules = to_tensor(image)
        page = page * (1 - rules) + choose(style.line) * rules
    if style.grain:  # chalk and pencil skip over the paper's tooth
        tooth = torch.rand(1, 1, height // 2 + 1, width // 2 + 1, generator=generator)
        gaps = F.interpolate(tooth, shape, mode="bilinear")[0, 0]
        cover = cover * (1 - style.grain * gaps)
    lamp = draw_light(rng, shape, style)
    page = (page * (1 - cover) + colour * cover) * lamp
    noise = rng.uniform(*style.noise)
    channels = 1 if rng.random() < 0.5 else 3  # grey or coloured noise
    page = page + noise * torch.randn(channels, *shape, generator=generator)
    return photograph(to_image(page.clamp(0, 255).permute(1, 2, 0)), rng, style)


def draw_variant(kind: str, number: int, digits, seed: int, n: int) -> tuple:
    """`n` photos of a kind's variant, and their texts: "" of a blank page."""
    images, labels = digits
    style = KINDS[kind][number]
    rng = random.Random(f"{seed}{kind}{number}")
    photos, texts = [], []
    for first in rng.sample(range(len(labels)), min(n, len(labels))):
        four = [first, *rng.sample(range(len(labels)), 3)]
        photos.append(draw(images[four], rng, style))
        texts.append("".join(map(str, labels[four[: style.row]].tolist())))
    return photos, texts


# %% Measuring
class Measurement(NamedTuple):
    """Per cent of the pictures, and the time that one takes."""

    accuracy: float
    refused: float
    several: float  # read, of single digits; nan of others
    milliseconds: float


def measure(model, ink, photos: list[Image.Image], texts: list[str]) -> Measurement:
    """Read the photos, whose digits are in `texts`."""
    results = []
    for photo, text in zip(photos, texts, strict=True):
        photo.save(file := io.BytesIO(), photo.format or "PNG", quality="keep")
        started = time.perf_counter()
        try:
            lines = read.read_picture(model, ink, file.getvalue())["lines"]
        except read.Error:
            lines = []
        seconds = time.perf_counter() - started
        found = "".join(line["text"] for line in lines)
        several = len(found) > 1 if len(text) == 1 else np.nan
        results.append((found == text, not found, several, seconds))
    return Measurement(*np.mean(results, 0) * (100, 100, 100, 1000))


def main() -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(formatter_class=formatter)
    add, data = parser.add_argument, REPO / "data"
    add("--data-dir", type=Path, default=data / "sample", help="digits to draw")
    add("--split", choices=["train", "test"], default="test", help="of them")
    add("--kinds", default=",".join(KINDS), help="of photographs")
    add("--n", type=int, default=200, help="drawings of each variant")
    add("--seed", type=int, default=0, help="of the drawing")
    add("--weights", default=f"{data}/mnist_cnn.pt", help="what reads the digits")
    add("--ink", default=f"{data}/ink.pt", help="what finds them")
    add("--photo", help="file for one drawing of the first of the kinds, instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    digits = predict.load(args.data_dir, args.split)
    if args.photo:
        [photo], _ = draw_variant(args.kinds.split(",")[0], -1, digits, args.seed, 1)
        photo.save(args.photo)
        return
    model = read.load_weights(args.weights)
    ink = read.load_weights(args.ink, read.InkNet, "data/make_ink.py")
    print("kind | right, % | refused, % | several, % | ms | right of each variant, %")
    print("---|---|---|---|---|---")
    means, least = [], []
    for kind in args.kinds.split(","):
        numbers = range(len(KINDS[kind]))
        drawn = (draw_variant(kind, i, digits, args.seed, args.n) for i in numbers)
        variants = np.array([measure(model, ink, *each) for each in drawn])
        means.append(variants.mean(0))
        least.append(variants[:, 0].min())
        print(kind, *means[-1].round(2), variants[:, 0].round(1), sep=" | ", flush=True)
    right, _, several, _ = np.nanmean(means, 0)
    print(f"mean {right:.2f}, least variant {min(least):.1f}, several {several:.2f} %")


if __name__ == "__main__":
    main()
