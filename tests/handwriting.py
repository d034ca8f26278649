#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["opencv-python-headless==5.0.0.93", "pillow==13.0.0", "scikit-learn==1.9.1", "torch==2.15.0",
#                 "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure predict.py on drawn photographs: digits with other pens, papers, lights and cameras, read back.

    uv run tests/handwriting.py --data-dir data/mnist --seed 7 --n 200
    uv run tests/handwriting.py --kinds shadow:3,blank                   some variants

Prints how many of each kind are read (blank pages: refused; rows of digits: noticed), of how many; how many
were said to have no ink and how many to have several digits; and predict.py's milliseconds an image, on one core.
"""

import argparse
import io
import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
import predict

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
FAR_PAGE = dict(size=(60, 150), canvas=(640, 480), pen=(0.04, 0.08), turn=3, sigma=(0, 8), jpeg=(60, 90))

# Kind -> variants. Pairs are ranges. size: longer side of the digit in pixels; margin: paper on each side, pitch of
# lines, box: distance of a form's box, pen: width of a thin stroke, thick: growth by a marker, all in digits; canvas:
# size of the whole image instead of margins; contrast: ink blended towards the paper; sigma: noise; light, vignette:
# darkening to a side and to the corners; shadow: what is left of the light in it, soft: its edge in pixels, band: its
# width in pages, where it has two edges; lines: 1 ruled, 2 squared; table: width of what surrounds the page, in pages,
# and the angle of the page on it; row: this many digits beside each other; blank: no ink.
KINDS = {
    "scanned": [dict(),
        dict(size=(40, 90), paper=WHITE + [(215, 215, 215)], sigma=(0, 12), margin=(0.1, 2.5), jpeg=(50, 90)),
        dict(size=(400, 600), margin=(0.2, 1.5), sigma=(0, 25))],
    "chalk": [dict(ink=[(255, 255, 255), (225, 225, 215)], paper=[(0, 0, 0), (20, 25, 22)], sigma=(0, 8)),
        dict(size=(50, 250), ink=[(230, 225, 180), (200, 215, 235), (240, 190, 190)], grain=0.5, jpeg=(60, 90),
             paper=[(45, 75, 60), (60, 60, 65)], sigma=(4, 15), light=0.4, margin=(0.2, 2))],
    "transparent": [dict(size=(60, 300), alpha=True), dict(size=(20, 60), alpha=True, ink=BLUE, margin=(0, 1))],
    "blue": [dict(size=(100, 300), ink=BLUE, paper=WARM, light=0.4, jpeg=(50, 90)),
        dict(size=(60, 400), ink=[(140, 165, 225), (150, 170, 230)], paper=WARM, light=0.5, sigma=(2, 10),
             jpeg=(50, 80), margin=(0.2, 2))],
    "thin": [dict(size=(100, 300), pen=(0.03, 0.05), sigma=(0, 5)),
        dict(PHOTO, pen=(0.025, 0.06), ink=BLUE + DARK, sigma=(0, 10))],
    "thick": [dict(thick=(0.03, 0.05)),
        dict(size=(60, 400), thick=(0.02, 0.06), ink=DARK + [(200, 30, 30), (30, 120, 60)], sigma=(0, 10),
             jpeg=(60, 90), margin=(0.2, 1.5))],
    "pencil": [dict(size=(100, 300), contrast=(0.25, 0.45), sigma=(4, 12), grain=0.6),
        dict(size=(80, 250), contrast=(0.15, 0.3), sigma=(3, 10), grain=0.4, pen=(0.04, 0.09), light=0.2,
             jpeg=(60, 90)), dict(size=(60, 150), contrast=(0.2, 0.3), sigma=(10, 18), margin=(0.3, 1))],
    "ruled": [dict(size=(80, 250), lines=1, pitch=(0.4, 1.3)), dict(BOOK, lines=1, pitch=(0.12, 0.5)),
        dict(BOLD_LINES, lines=1, pitch=(0.5, 1.5), line=[(90, 90, 100), (80, 100, 160), (200, 80, 80)]),
        dict(FAR_PAGE, lines=1, pitch=(0.3, 0.8))],
    "squared": [dict(size=(80, 250), lines=2, pitch=(0.2, 0.7)), dict(BOOK, lines=2, pitch=(0.1, 0.3)),
        dict(BOLD_LINES, lines=2, pitch=(0.3, 1.2), line=[(100, 110, 130), (80, 100, 180)]),
        dict(FAR_PAGE, lines=2, pitch=(0.2, 0.5))],
    "shadow": [dict(size=(80, 250), shadow=(0.4, 0.7), soft=(0, 2)),
        dict(PHOTO, shadow=(0.3, 0.8), soft=(2, 25), light=0.3, jpeg=(50, 90), margin=(0.3, 2.5)),
        dict(size=(60, 200), shadow=(0.5, 0.8), soft=(0, 8), canvas=(640, 480), sigma=(0, 10),
             paper=WARM + WHITE, pen=(0.05, 0.1)),
        dict(size=(60, 200), shadow=(0.4, 0.8), soft=(0, 8), band=(0.2, 0.6), margin=(0.3, 2), sigma=(0, 8))],
    "small": [dict(size=(45, 60), canvas=(1600, 1200), light=0.4, sigma=(8, 20), jpeg=(60, 90)),
        dict(size=(40, 55), canvas=(1200, 1600), light=0.5, vignette=0.4, sigma=(15, 25), jpeg=(50, 80),
             ink=DARK + BLUE, paper=WARM + WHITE),
        dict(size=(45, 60), canvas=(1600, 1200), light=0.3, sigma=(5, 15), pen=(0.06, 0.1), jpeg=(50, 90))],
    "cropped": [dict(margin=(0, 0)),
        dict(size=(40, 120), margin=(0, 0), sigma=(2, 12), jpeg=(50, 90), thick=(0, 0.03), ink=DARK + BLUE,
             paper=WARM + WHITE),
        dict(size=(100, 300), margin=(0, 0.02), pen=(0.04, 0.08), light=0.3, sigma=(0, 0))],
    "tilted": [dict(tilt=15), dict(BOOK, tilt=15, sigma=(2, 12), pen=(0.05, 0.1), margin=(0.2, 2))],
    "framed": [dict(table=(0.005, 0.05, 0)), dict(PHOTO, size=(60, 300), table=(0.05, 0.15, 10), paper=WHITE + WARM)],
    "boxed": [dict(box=(0.1, 0.5), margin=(0.6, 2), line=DARK + BLUE, width=(2, 6)),
        dict(PHOTO, box=(0.05, 0.3), margin=(0.4, 2), width=(2, 4))],
    "mixed": [dict(size=(80, 200), lines=1, pitch=(0.3, 1), shadow=(0.5, 0.8), soft=(0, 6)),
        dict(size=(80, 200), lines=2, pitch=(0.2, 0.6), contrast=(0.35, 0.5), sigma=(2, 6), light=0.3,
             line=[(190, 205, 230), (215, 215, 215)]),
        dict(size=(60, 200), ink=[(240, 240, 240)], paper=[(40, 70, 55)], shadow=(0.5, 0.8), soft=(0, 10),
             tilt=10, sigma=(2, 8), jpeg=(60, 90)),
        dict(size=(50, 70), canvas=(1200, 900), lines=1, pitch=(0.6, 1.2), light=0.4, sigma=(5, 12), jpeg=(60, 90))],
    "edge": [dict(margin=(0.01, 0.05)), dict(PHOTO, margin=(0.01, 0.08))],
    "blank": [dict(size=(50, 300), blank=True, sigma=(0, 0)), dict(size=(50, 300), blank=True, sigma=(3, 25)),
        dict(size=(50, 300), blank=True, light=0.6, vignette=0.5, sigma=(0, 8)),
        dict(size=(50, 300), blank=True, light=0.3, paper=WHITE + WARM, sigma=(2, 12), jpeg=(60, 95)),
        dict(size=(50, 200), blank=True, lines=1, pitch=(0.3, 1), light=0.2, sigma=(0, 8)),
        dict(size=(50, 200), blank=True, lines=2, pitch=(0.1, 0.25), light=0.2, sigma=(0, 8))],
    "row": [dict(size=(60, 200), row=count, sigma=(0, 8), light=0.2) for count in (2, 3, 4)],
    "others": [dict()],
}  # fmt: skip


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
    return image.resize([max(least, round(length * (side / max(image.size)))) for length in image.size], resample)


def thinned(mask: torch.Tensor) -> torch.Tensor:
    """Zhang and Suen's thinning (1984): a (h, w) bool mask, empty at its border, to lines one pixel wide."""
    before = None
    while before is None or not torch.equal(before, mask):
        before = mask
        for first in (True, False):
            steps = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ring = [mask.roll(step, (0, 1)) for step in steps]  # the neighbours, clockwise from the north
            north, _, east, _, south, _, west, _ = ring
            count, starts = sum(ring), sum(a < b for a, b in zip(ring, ring[1:] + ring[:1]))
            keep = (east & south & (north | west)) if first else (north & west & (east | south))
            mask = mask & (keep | (count < 2) | (count > 6) | (starts != 1))
    return mask


def draw_strokes(digit: torch.Tensor, rng, size: int, pen=None, thick=None, tilt=0) -> torch.Tensor:
    """A (28, 28) uint8 digit to (h, w) float32 coverage with ink, cropped, its longer side `size` pixels."""
    image = Image.fromarray(digit.numpy())
    image = ImageOps.expand(resize(image.crop(image.getbbox()), 100, 8, Image.Resampling.BICUBIC), 30)
    if tilt:
        image = image.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC)
    ink = to_tensor(image.filter(ImageFilter.GaussianBlur(1.5)))
    if pen:  # the middle line of the strokes, drawn again with a pen of one width
        line = thinned(ink > 0.35)
        distance = cv2.distanceTransform((~line).byte().numpy(), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ink = (rng.uniform(*pen) * 50 + 0.5 - torch.tensor(distance)).clamp(0, 1)
    else:
        ink = ((ink - 0.5) * rng.uniform(2, 6) + 0.5).clamp(0, 1)  # MNIST's soft edges -> a pen's
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
    padded = [F.pad(ink, (0, gap, free // 2, free - free // 2)) for ink, free in zip(inks, room)]
    return torch.cat(padded, 1)[:, : -gap or None]


def draw_lines(rng, shape, squared: bool, step: float, width: int, angle: float) -> torch.Tensor:
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
    """What the light multiplies each pixel by, (h, w) float32: uneven, darker in the corners, with a shadow."""
    height, breadth = shape
    shorter = min(shape)
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, breadth)[None]

    def slope(high, wide):
        angle = torch.tensor(rng.uniform(0, 6.3))
        return angle.cos() * x * wide + angle.sin() * y * high

    lamp = (1 + slope(1, 1) / 1.4) / 2
    lamp = 1 - light * rng.uniform(0.3, 1) * lamp - vignette * rng.uniform(0.3, 1) * (x * x + y * y) / 2
    if shadow:
        distance = slope(height, breadth) / 2 - rng.uniform(0, 0.7) * shorter / 2
        if band:  # the shadow of a pen or an arm: two edges
            distance = rng.uniform(*band) * shorter / 2 - distance.abs()
        lamp = lamp * (1 - (1 - rng.uniform(*shadow)) * torch.sigmoid(distance / max(0.3, rng.uniform(*soft) / 2)))
    return lamp


def draw(digits, rng, size=(80, 300), margin=(0.15, 1), canvas=None, ink=DARK, paper=WHITE, contrast=None, light=0,
         vignette=0, shadow=None, soft=(0, 1), band=None, lines=0, pitch=(0.3, 1), line=LINES, width=(1, 2), turn=0,
         sigma=(0, 6), grain=0, jpeg=None, alpha=False, table=None, box=None, row=1, blank=False,
         **strokes) -> Image.Image:  # fmt: skip
    """A photographed digit, the first of `digits`, or a row of them; KINDS describes the options.

    The order of the calls of `rng` makes the picture: another one changes all figures that were measured.
    """
    def choose(colours):
        return torch.tensor(rng.choice(colours)).float().view(3, 1, 1)

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = rng.randint(*size)
    cover = torch.zeros(size, size) if blank else draw_row(digits[:row], rng, size, **strokes)
    h, w = cover.shape
    left, right, top, bottom = (round(rng.uniform(*margin) * size) for _ in range(4))
    if canvas:
        left, top = rng.randint(5, canvas[0] - w - 5), rng.randint(5, canvas[1] - h - 5)
        right, bottom = canvas[0] - w - left, canvas[1] - h - top
    cover = F.pad(cover, (left, right, top, bottom))
    height, breadth = shape = cover.shape
    colour, page = choose(ink), choose(paper)
    if alpha:
        return to_image(torch.cat([colour.expand(3, *shape), 255 * cover[None]]).permute(1, 2, 0))
    if contrast:
        strength = rng.uniform(*contrast)
        colour = blend(page, choose([(0, 0, 0), (20, 20, 25)]), strength)
    if lines:
        step, thickness, angle = max(5, rng.uniform(*pitch) * size), rng.randint(*width), rng.uniform(-turn, turn)
        rules = draw_lines(rng, shape, lines == 2, step, thickness, angle)
        page = blend(page, choose(line), rules)
    if box:
        gap, rules = round(rng.uniform(*box) * size), Image.new("L", (breadth, height))
        start, end = (max(0, left - gap), max(0, top - gap)), (left + w + gap, top + h + gap)
        corners = start, (min(breadth, end[0]) - 1, min(height, end[1]) - 1)
        ImageDraw.Draw(rules).rectangle(corners, None, 255, rng.randint(*width))
        page = blend(page, choose(line), to_tensor(rules))
    if grain:  # chalk and pencil skip over the paper's tooth
        tooth = torch.rand(1, 1, height // 2 + 1, breadth // 2 + 1, generator=generator)
        cover = cover * (1 - grain * F.interpolate(tooth, shape, mode="bilinear")[0, 0])
    page = blend(page, colour, cover) * draw_light(rng, shape, light, vignette, shadow, soft, band)
    noise = rng.uniform(*sigma)
    channels = 1 if rng.random() < 0.5 else 3  # grey or coloured noise
    page = (page + noise * torch.randn(channels, *shape, generator=generator)).clamp(0, 255)
    image = to_image(page.permute(1, 2, 0))
    if table:
        around, border = rng.choice(TABLES), max(1, round(rng.uniform(*table[:2]) * min(image.size)))
        image = ImageOps.expand(image, border, around)
        image = image.rotate(rng.uniform(-table[2], table[2]), Image.Resampling.BICUBIC, fillcolor=around)
    if jpeg:
        image.save(file := io.BytesIO(), "JPEG", quality=rng.randint(*jpeg))
        image = Image.open(file)
    return image


def draw_others() -> tuple[list[Image.Image], list[int]]:
    """scikit-learn's 1,797 digits of other writers, 8×8, enlarged, dark on white, and their labels."""
    from sklearn.datasets import load_digits  # here, because test_images.py does without it
    digits = load_digits()
    images = [Image.fromarray((255 - digit * 15.9375).clip(0, 255).astype("uint8")) for digit in digits.images]
    images = [image.resize((200, 200), Image.Resampling.LANCZOS) for image in images]
    return [ImageOps.expand(image, 30, "white") for image in images], digits.target.tolist()


# %% Measuring
def measure(model, photos: list[Image.Image], labels: list[int], kind: str) -> str:
    """The cells of a table: accuracy, n, no ink, several, ms an image."""
    right = blank = rows = spent = 0
    for photo, label in zip(photos, labels):
        photo.save(file := io.BytesIO(), photo.format or "PNG", quality="keep")
        file.seek(0)
        digit, several, started = -1, False, time.perf_counter()
        try:
            candidates, several = predict.prepare(predict.decode(Image.open(file)))
            spent += time.perf_counter() - started
            digit = int(predict.classify(model, torch.from_numpy(candidates)).softmax(1).mean(0).argmax())
        except predict.Error:
            spent += time.perf_counter() - started
        blank, rows = blank + (digit == -1), rows + several
        right += {"blank": digit == -1, "row": several}.get(kind, digit == label)
    n = len(photos)
    return f"{100 * right / n:.2f} | {n} | {blank} | {rows} | {1000 * spent / n:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, default=REPO / "data/sample", help="digits to draw")
    add("--split", choices=["train", "test"], default="test", help="of them")
    add("--kinds", default=",".join(KINDS), help="chalk, or chalk:1 for its second variant")
    add("--n", type=int, default=200, help="drawings of each variant")
    add("--seed", type=int, default=0, help="of the drawing")
    add("--weights", default=str(REPO / "data/mnist_cnn.pt"), help="state_dict to read them with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = predict.load_weights(args.weights)
    images, labels = predict.load(args.data_dir, args.split)
    everything = range(len(labels))
    print("kind | accuracy | n | no ink | several | ms an image\n---|---|---|---|---|---")
    for kind in args.kinds.split(","):
        name, _, only = kind.partition(":")
        for number, options in enumerate(KINDS[name]):
            if only and int(only) != number:
                continue
            if name == "others":
                photos, truth = draw_others()
            else:
                rng = random.Random(f"{args.seed}{name}{number}")
                chosen = rng.sample(everything, min(args.n, len(labels)))
                truth = labels[chosen].tolist()
                photos = [draw(images[[i, *rng.sample(everything, 3)]], rng, **options) for i in chosen]
            print(f"{name}:{number} |", measure(model, photos, truth, name), flush=True)


if __name__ == "__main__":
    main()
