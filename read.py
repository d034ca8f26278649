#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
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
# exclude-newer-package = { torch = false }
# ///

# %% Start
"""Read handwritten digits and numbers in pictures, with the weights that train.py made.

    uv run read.py photo.jpg scans/            files, folders, or - for one on stdin
    uv run read.py --json photo.jpg            for programs: boxes, probabilities
    uv run read.py --to-mnist own labelled/    pictures in folders 0 to 9, for train.py

    $ uv run read.py photo.jpg sheet.jpg
    photo.jpg          1985           98.2 %
    sheet.jpg          12345          97.0 %
                       67890          99.1 %

A line of writing is a line of output; its probability is the product of its digits'.
"""

import argparse
import csv
import gc
import io
import json
import os
import sys
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    gc.disable()  # while importing torch: a start in 1.0 s instead of 1.5

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

UNSURE = 0.6  # below this, about half of the answers are wrong


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions, two linear layers, 225,034 parameters: (N, 1, 28, 28) float32 to (N, 10) logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(1600, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(
            F.max_pool2d(self.conv1(x), 2)
        )  # relu after pooling: the same, a quarter of the work
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32, by the mean and deviation of MNIST's training images."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


@torch.no_grad()
def classify(model: SimpleCNN, images: Tensor, batch_size: int = 100) -> Tensor:
    """(N, 28, 28) uint8 images to (N, 10) float32 logits on the CPU. Batches of 100 stay in a CPU's cache."""
    model.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    device = model.fc1.weight.device
    return torch.cat(
        [model(normalize(x.to(device))).cpu() for x in images.split(batch_size)]
    )


def load_weights(source: str) -> SimpleCNN:
    """The network, in eval mode, with the state_dict in a file or at a URL; raises Error where none fits."""
    model = SimpleCNN()
    try:
        file = (
            io.BytesIO(urllib.request.urlopen(source, timeout=10).read())
            if "://" in source
            else source
        )
        model.load_state_dict(
            torch.load(file, map_location="cpu", weights_only=True)
        )  # runs no code
    except OSError as error:
        raise Error(
            f"no weights in {source} ({error}); `uv run train.py` makes them"
        ) from None
    except (
        Exception
    ) as error:  # torch's own words for a file with code would advise to run it
        reason = "it is no plain state_dict" if "weights_only" in str(error) else error
        raise Error(
            f"{source} does not fit SimpleCNN in train.py, predict.py and draw.py: {reason}"
        ) from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise Error(
            f"the weights in {source} are not finite; train again, with a smaller --lr"
        )
    return model.eval()


# %% Handwriting: from a picture to digits that look like MNIST's
# Two looks: a coarse one finds where the digits are and how tall, a close one their strokes.
# "Level" is the contrast of the digits with their paper, "height" that of a digit.
OVERVIEW = 192  # longer side in pixels for what concerns the whole picture
FIRST = 400  # longer side in pixels of the first look; at 192 digits of a long row melt
CLOSE = 100  # height of a digit in pixels in the close look
WIDEST = 1600  # pixels of the close look's longer side: bounds time and memory
FRAME = 0.3  # of the picture's range: a frame differs more than that from the page
LOCAL = (
    1 / 3
)  # of the picture is wider than a stroke: light and shadow, part of the paper
NEAR = 0.7  # heights, the same for the close look
BLUR = 0.07  # heights: less and grain breaks strokes, more and hairlines vanish
DARKEST = (38, 255)  # of 255, as divisor of dark and of light ink's contrast: noise in the dark
WEAK = 0.25  # of the level: weak ink is ink where it belongs to a sharp blob ...
STRONG = 0.6  # ... and strong ink always
STEP = 0.2  # of the level: a blob is sharp if much of it passes a threshold by so much
SHARP = 0.5  # part of a sharp blob that does: shadows and grain barely pass
FAINT = 0.065  # level times squared part of the ink that does: less is blank paper
SMALLEST = 0.025  # of the picture's longer side: a digit's height
GAP = 0.08  # heights: pieces above each other join across it, as in a broken stroke
HALF = 0.55  # heights: smaller pieces join a digit, as a 5's flag ...
REACH = 0.1  # heights: ... which they nearly touch
LONE = 0.4  # heights: smaller ones are dots or dashes
SPECK = 0.1  # heights: smaller ones are dirt
T1 = .15
T2 = .25
EDGE = .45
EDGE_W = .15
THICK = .15
SOLID = .3
TIMES = 1.8
SLACK = 0.25  # heights: what the close look finds so far out is cut off by its edge
OVERLAP = 0.35  # of the lower digit: so much beside each other is one line
CENTRE = 14  # pixels: MNIST's centre of mass, counted from the first pixel's middle


class Digits(NamedTuple):
    """The digits of a picture in reading order."""

    images: np.ndarray  # (n, 28, 28) uint8, light on black
    boxes: np.ndarray  # (n, 4) float: x, y, width, height in pixels of the picture
    lines: list[int]  # the line of writing of each, from 0


class Blobs(NamedTuple):
    """Connected pieces of ink; the first one stands for the paper."""

    labels: np.ndarray  # (h, w) int32: the blob of each pixel
    boxes: np.ndarray  # (n, 4) int: left, top, right, bottom
    mass: np.ndarray  # (n,) float: strong ink; 0 for what is no part of a digit
    height: float  # of a digit


def resize(pixels: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(scale * length)) for length in pixels.shape[1::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=how)


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 to (h, w) uint8: the channel that shows most, its brightest part white."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    deviation = cv2.meanStdDev(pixels)[1]
    if (
        deviation.max() > 1.5 * cv2.meanStdDev(grey)[1].item()
    ):  # yellow ink, red on blue
        grey = np.ascontiguousarray(pixels[..., deviation.argmax()])
    return grey


def is_mnist(grey: np.ndarray) -> bool:
    """Is it light on black and laid out like MNIST: 20 pixels at most, centred by mass?"""
    if grey.shape != (28, 28) or border(grey).mean() >= 64 or np.ptp(grey) < 32:
        return False
    _, _, w, h = cv2.boundingRect((grey > 24).astype(np.uint8))
    m = cv2.moments(grey)
    off = max(abs(m["m10"] / m["m00"] - CENTRE), abs(m["m01"] / m["m00"] - CENTRE))
    return max(w, h) <= 20 and off < 1


def paint_surroundings(grey: np.ndarray) -> np.ndarray:
    """Paint a frame or table around the page like paper.

    It covers most of the border, and what is left fills its rectangle; in a tightly
    cropped 0 that is 79 % (pi / 4).
    """
    small = resize(grey, OVERVIEW / max(grey.shape))
    paper = np.uint8(np.median(small))
    unlike = cv2.absdiff(small, np.full_like(small, paper)) >= FRAME * np.ptp(small)
    if border(unlike).mean() <= 0.8:
        return grey
    padded = np.pad(unlike, 1, constant_values=True).astype(np.uint8)
    labels = cv2.connectedComponents(padded, connectivity=4)[1]
    around = (labels[1:-1, 1:-1] == 1).astype(np.uint8)  # the padding joins it
    page = cv2.findNonZero(1 - around)
    if page is None:
        return grey
    _, (w, h), _ = cv2.minAreaRect(page)
    if len(page) <= 0.88 * (w + 1) * (h + 1):
        return grey
    return np.where(cv2.resize(around, grey.shape[::-1]), paper, grey)


def is_light(grey: np.ndarray) -> bool:
    """Is the ink lighter than the paper? Ink is the rarer, so the skewness tells.

    The border is mostly paper and counts too.
    """
    small = cv2.blur(resize(grey, OVERVIEW / max(grey.shape)), (3, 3))
    detail = np.log(small.astype(np.float32) + 8)
    paper = cv2.blur(detail, (65, 65), borderType=cv2.BORDER_REPLICATE)
    detail -= paper  # in the logarithm uneven light is an offset
    detail /= detail.std() + 1e-6
    skewness = cv2.pow(np.pad(detail, 24, "edge"), 3).mean()
    return skewness > 1.5 * border(detail).mean()


def measure_ink(
    grey: np.ndarray, light: bool, window: float, margin: float
) -> np.ndarray:
    """(h, w) float32 contrast of each pixel with its paper, 0 to 1.

    Paper is the picture less all that is narrower than `window`; a shadow is wider and
    stays part of it. Without a `margin`, light that fades at the border looks like ink;
    with a wide one, strokes there look like paper.
    """
    h, w = grey.shape
    margin = round(margin)
    square = np.ones([int(window) | 1] * 2, np.uint8)  # of odd size
    how = cv2.MORPH_OPEN if light else cv2.MORPH_CLOSE
    paper = cv2.morphologyEx(np.pad(grey, margin, "edge"), how, square)
    paper = paper[margin : margin + h, margin : margin + w]
    divisor = cv2.max(paper, grey).clip(DARKEST[int(light)]).astype(np.float32)
    return cv2.absdiff(paper, grey) / divisor


def find_strokes(ink: np.ndarray, level: float) -> np.ndarray:
    """(h, w) bool: strong ink and, where a blob is sharp, its weak ink (hysteresis)."""
    mask = ink > STRONG * level
    for t in (T1, T2):
        weak = (ink > t * level).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(weak)
        area = stats[:, 4]
        firm = np.bincount(labels[ink > TIMES * t * level], minlength=count)
        solid = np.bincount(labels[ink > STRONG * level], minlength=count)
        depth = cv2.distanceTransform(weak, cv2.DIST_L2, 3)
        longer = stats[:, 2:4].max(1)
        thick = np.bincount(labels[depth > THICK * longer[labels]], minlength=count) > 0
        sharp = (firm > SHARP * area) & (~thick | (solid > SOLID * area))
        sharp[0] = False
        mask |= sharp[labels]
    return mask


def find_blobs(ink: np.ndarray, level: float, gap: float = 0) -> Blobs:
    """The connected pieces of ink; pieces that lie a `gap` below each other are one."""
    mask = find_strokes(ink, level)
    joined = mask.astype(np.uint8)
    if gap:
        bridge = np.ones((int(gap) + 1, 1), np.uint8)
        joined = cv2.morphologyEx(joined, cv2.MORPH_CLOSE, bridge)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    left, top, w, h, _ = stats.T
    labels = labels * mask
    if gap and EDGE:
        ridge = cv2.dilate(ink, np.ones([int(EDGE_W / GAP * gap) | 1] * 2, np.uint8))
        labels[ink < EDGE * ridge] = 0
    right, bottom, (rows, columns) = left + w, top + h, ink.shape
    strong = np.maximum(ink - STRONG * level, 0)  # shadows weigh nothing
    mass = np.bincount(labels.ravel(), strong.ravel(), len(stats))
    mass[0] = 0
    across = (w > 0.95 * columns) & (h < 0.12 * columns)  # ruled lines
    mass[across | ((h > 0.95 * rows) & (w < 0.12 * rows))] = 0
    for i in mass.argsort()[-4:]:  # a frame or a form's box has other ink inside
        inside = (left > left[i]) & (top > top[i]) & (mass > 0.1 * mass[i])
        inside &= (right < right[i]) & (bottom < bottom[i])
        if inside.any():
            paper = np.pad(labels[top[i]:bottom[i], left[i]:right[i]] != i, 1, constant_values=True)
            _, paper = cv2.connectedComponents(paper.astype(np.uint8), connectivity=4)
            if np.isin(labels[top[i]:bottom[i], left[i]:right[i]][paper[1:-1, 1:-1] > 1], np.flatnonzero(inside)).any():
                mass[i] = 0
    height = weighted_median(np.maximum(h, w / 2), mass * h)
    boxes = np.stack([left, top, right, bottom], 1)
    return Blobs(labels, boxes, mass, height)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = values.argsort()
    total = weights[order].cumsum()
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def sizes(boxes: np.ndarray) -> np.ndarray:
    """(n,) the height of each box, or half its width if that is more: a wide piece."""
    left, top, right, bottom = boxes.T
    return np.maximum(bottom - top, (right - left) / 2)


def join_pieces(blobs: Blobs) -> list[list[int]]:
    """The numbers of the blobs that make up each digit."""
    size = sizes(blobs.boxes) / blobs.height
    size[blobs.mass == 0] = 0
    large = np.flatnonzero(size > HALF)
    digits = [[i] for i in large]
    left, top, right, bottom = blobs.boxes.T
    for i in np.flatnonzero((size > SPECK) & (size <= HALF)):
        across = np.maximum(left[i] - right[large], left[large] - right[i]).clip(0)
        down = np.maximum(top[i] - bottom[large], top[large] - bottom[i]).clip(0)
        distance = np.hypot(across, down)
        if distance.min(initial=np.inf) < REACH * blobs.height:
            digits[distance.argmin()].append(i)
        elif size[i] > LONE:
            digits.append([i])
    return digits


def group_lines(boxes: np.ndarray) -> list[list[int]]:
    """The numbers of the (left, top, right, bottom) boxes of each line, top to bottom.

    From left to right a digit joins the line whose last one lies beside it, where the
    line's slope would have it: so a slanting row stays one line.
    """
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    height = boxes[:, 3] - boxes[:, 1]
    lines = []
    for i in x.argsort():
        best, most = None, OVERLAP
        for line in lines:
            last = line[-1]
            slope = 0
            if len(line) > 1:
                before = line[-2]
                slope = (y[last] - y[before]) / max(x[last] - x[before], 1)
            shift = np.clip(slope, -1.2, 1.2) * min(x[i] - x[last], 2 * height[last])
            upper = max(boxes[i, 1], boxes[last, 1] + shift)
            lower = min(boxes[i, 3], boxes[last, 3] + shift)
            beside = (lower - upper) / min(height[i], height[last])
            if beside > most:
                best, most = line, beside
        if best is None:
            lines.append([i])
        else:
            best.append(i)
    return sorted(lines, key=lambda line: y[line].mean())


def fit(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool to (28, 28) uint8 with strokes 2 to 3.5 pixels wide.

    As in MNIST (LeCun et al. 1998) the longer side is 20 pixels and the centre of mass
    in the middle.
    """
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    unit = max(w, h) / 20
    room = int(2 * unit) + 2
    digit = np.pad(mask[y : y + h, x : x + w], room).astype(np.uint8)
    depth = cv2.distanceTransform(digit, cv2.DIST_L2, 5)
    width = (4 * depth[digit > 0].mean() - 1) / unit  # on average a quarter deep
    grow = max(unit * (np.clip(width, 2, 3.5) - width) / 2, -depth.max())
    outside = cv2.distanceTransform(1 - digit, cv2.DIST_L2, 5)
    digit = (outside - depth <= grow).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(digit)
    size = [max(1, round(20 * length / max(w, h))) for length in (w, h)]
    digit = 255 * digit[y : y + h, x : x + w]
    digit = cv2.resize(digit, size, interpolation=cv2.INTER_AREA)
    (h, w), m = digit.shape, cv2.moments(digit)
    left = min(max(round(CENTRE - m["m10"] / m["m00"]), 0), 28 - w)
    top = min(max(round(CENTRE - m["m01"] / m["m00"]), 0), 28 - h)
    return np.pad(digit, ((top, 28 - top - h), (left, 28 - left - w)))


def look(grey: np.ndarray, light: bool) -> tuple[np.ndarray, float]:
    """The (n, 4) boxes of large blobs: left, top, right, bottom; a digit's height."""
    longer = max(grey.shape)
    scale = min(max(OVERVIEW, longer), FIRST) / longer
    small = cv2.blur(resize(grey, scale), (3, 3))
    longer = max(small.shape)
    ink = measure_ink(small, light, LOCAL * longer, longer / 6)
    blobs = find_blobs(ink, max(0.04, cv2.blur(ink, (3, 3)).max()))
    if not blobs.mass.any() or blobs.height < SMALLEST * longer:
        raise Error("no ink found")
    found = (blobs.mass > 0) & (sizes(blobs.boxes) > LONE * blobs.height)
    return blobs.boxes[found] / scale, blobs.height / scale


def look_closer(
    grey: np.ndarray, light: bool, boxes: np.ndarray, height: float
) -> Digits:
    """The digits in and around the `boxes` of a first look."""
    start = np.maximum(boxes[:, :2].min(0) - 0.6 * height, 0).astype(int)
    end = (boxes[:, 2:].max(0) + 0.6 * height).astype(int) + 1
    near = grey[start[1] : end[1], start[0] : end[0]]
    scale = min(CLOSE / height, WIDEST / max(near.shape))
    height *= scale
    boxes = (boxes - np.tile(start, 2)) * scale
    near = cv2.blur(resize(near, scale), [round(BLUR * height) | 1] * 2)
    ink = measure_ink(near, light, NEAR * height, 0.1 * height)
    soft = cv2.blur(ink, (3, 3))
    peaks = [soft[t : b + 1, l : r + 1].max() for l, t, r, b in boxes.astype(int)]
    level = max(0.04, np.median(peaks))
    blobs = find_blobs(ink, level, GAP * height)
    middle = (blobs.boxes[:, :2] + blobs.boxes[:, 2:]) / 2
    outside = (middle < boxes[:, :2].min(0) - SLACK * height).any(1)
    outside |= (middle > boxes[:, 2:].max(0) + SLACK * height).any(1)
    blobs.mass[outside] = 0
    pieces = join_pieces(blobs)
    mask = np.isin(blobs.labels, [i for digit in pieces for i in digit])
    firm = (ink > (WEAK + STEP) * level).sum() / (ink > WEAK * level).sum()
    if not pieces or level * firm**2 < FAINT:
        raise Error("no ink found")
    all_boxes = [merge(blobs.boxes[digit]) for digit in pieces]
    images = []
    for digit, (l, t, r, b) in zip(pieces, all_boxes):
        images.append(fit(np.isin(blobs.labels[t:b, l:r], digit)))
    found = np.array(all_boxes, float)
    lines = group_lines(found)
    order = [i for line in lines for i in line]
    found[:, 2:] -= found[:, :2]
    found /= scale
    found[:, :2] += start
    numbers = [number for number, line in enumerate(lines) for _ in line]
    return Digits(np.stack(images)[order], found[order], numbers)


def merge(boxes: np.ndarray) -> list[int]:
    return [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]


def find_digits(pixels: np.ndarray) -> Digits:
    """The digits in (h, w, 3) uint8 pixels; raises Error if there are none.

    A 28×28 picture that is laid out like MNIST stays as it is.
    """
    grey = to_grey(pixels)
    if is_mnist(grey):
        return Digits(grey[None], np.array([[0.0, 0, 28, 28]]), [0])
    brightest = cv2.blur(resize(grey, OVERVIEW / max(grey.shape)), (3, 3)).max()
    grey = cv2.convertScaleAbs(grey, alpha=255 / max(1, int(brightest)))
    grey = paint_surroundings(grey)
    light = is_light(grey)
    return look_closer(grey, light, *look(grey, light))


# %% Pictures
class Reading(NamedTuple):
    """What a picture says, or why it says nothing."""

    file: str
    error: str = ""
    digits: Digits | None = None
    probabilities: Tensor | None = None  # (n, 10)


@cache
def register_formats() -> None:
    """Let Pillow open HEIC, an iPhone's format."""
    from pi_heif import register_heif_opener

    register_heif_opener()


def open_picture(picture) -> Image.Image:
    """A path, file, PIL image or array as a PIL image; raises Error or Pillow's errors."""
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | os.PathLike | io.IOBase):
        register_formats()
        return Image.open(picture)
    pixels = np.asarray(picture)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise Error(f"shape {pixels.shape} is not (h, w), (h, w, 3) or (h, w, 4)")
    if not pixels.size:
        raise Error(f"shape {pixels.shape} has no pixels")
    return Image.fromarray(to_bytes(pixels).squeeze())


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Any numbers to uint8: others than uint8 from their least to their largest."""
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    return cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


def decode(image: Image.Image) -> np.ndarray:
    """Any picture to (h, w, 3) uint8, upright, at most 1600×1600; raises Pillow's errors."""
    image.draft("RGB", (1600, 1600))  # decodes a large JPEG at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32 bits, of whatever range
        image = Image.fromarray(to_bytes(np.asarray(image.convert("F"))))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
        if image.convert("L").getextrema()[0] > 240:  # white ink shows on black only
            black = Image.new("RGBA", layer.size, "black")
            image = Image.alpha_composite(black, layer)
    image = image.convert("RGB")
    image.thumbnail((1600, 1600))
    return np.asarray(image)


def prepare(picture) -> Digits:
    """The digits of a path, file, PIL image or array; raises Error that says why none."""
    try:
        image = open_picture(picture)
        longer = max(image.size)
        pixels = decode(image)
        digits = find_digits(pixels)
    except UnidentifiedImageError:
        raise Error("not an image, or a damaged one") from None
    except Error:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error)
        raise Error(reason or type(error).__name__) from None
    return digits._replace(boxes=digits.boxes * longer / max(pixels.shape))


def prepare_file(path: str) -> Reading:
    try:
        stdin = path == "-"
        source = io.BytesIO(sys.stdin.buffer.read()) if stdin else path
        return Reading(path, "", prepare(source))
    except Error as error:
        return Reading(path, " ".join(str(error).split()))


def prepare_files(paths: Iterable[str]) -> Iterator[list[Reading]]:
    """Readings without probabilities, 100 at a time: all that memory holds."""
    paths = iter(paths)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while batch := list(islice(paths, 100)):
            yield list(pool.map(prepare_file, batch))


def read_files(model: SimpleCNN, paths: Iterable[str]) -> Iterator[Reading]:
    """The reading of each file, in order."""
    for batch in prepare_files(paths):
        found = [reading.digits.images for reading in batch if not reading.error]
        images = np.concatenate([np.empty((0, 28, 28), np.uint8), *found])
        answers = probabilities_of(model, images).split([len(x) for x in found])
        answers = iter(answers)
        for reading in batch:
            if reading.error:
                yield reading
            else:
                yield reading._replace(probabilities=next(answers))


def probabilities_of(model: SimpleCNN, images: np.ndarray) -> Tensor:
    """(n, 28, 28) uint8 to (n, 10) float32."""
    if not len(images):
        return torch.empty(0, 10)
    return classify(model, torch.from_numpy(images)).softmax(1)


def describe(reading: Reading) -> dict:
    """A reading in the form of --json."""
    digits, lines = [], [""] * (max(reading.digits.lines) + 1)
    found = zip(reading.probabilities, reading.digits.boxes, reading.digits.lines)
    for probabilities, box, line in found:
        digit = int(probabilities.argmax())
        p = probabilities.tolist()
        lines[line] += str(digit)
        entry = dict(line=line, digit=digit, probability=p[digit])
        entry |= dict(unsure=p[digit] < UNSURE, probabilities=p)
        digits.append(entry | dict(box=[round(float(length)) for length in box]))
    surest = reading.probabilities.max(1).values
    return dict(
        file=reading.file,
        lines=lines,
        probability=float(surest.prod()),
        unsure=any(digit["unsure"] for digit in digits),
        digits=digits,
    )


def read_picture(model: SimpleCNN, picture) -> dict:
    """What a picture says: a path, PIL image or array (h, w), (h, w, 3) or (h, w, 4).

    Returns "file", "lines" (a string of digits for each line of writing),
    "probability" (of all of them), "unsure" and "digits", each with its "line",
    "digit", "probability", "unsure", ten "probabilities" and "box" (x, y, width, height
    in pixels of the upright picture). Raises Error if there is nothing to read.
    """
    digits = prepare(picture)
    file = str(picture) if isinstance(picture, str | os.PathLike) else ""
    probabilities = probabilities_of(model, digits.images)
    return describe(Reading(file, "", digits, probabilities))


def find_files(paths: list[str], passed_over: Counter) -> Iterator[str]:
    """The files in `paths` and the pictures in folders, in order of name.

    Counts other files by suffix in `passed_over`.
    """
    register_formats()
    formats = Image.registered_extensions().items()
    known = {suffix for suffix, kind in formats if kind in Image.OPEN}
    for path in paths:
        if not os.path.isdir(path):
            yield path
        for file in filter(Path.is_file, sorted(Path(path).rglob("*"))):
            if file.suffix.lower() in known:
                yield str(file)
            else:
                passed_over[file.suffix or file.name] += 1


# %% Own pictures for train.py
def find_labelled(paths: list[str]) -> list[tuple[str, int]]:
    """The files in folders named 0 to 9 below `paths`, and their digits."""
    labelled = []
    for folder in sorted(child for path in paths for child in Path(path).iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if folder.name not in list("0123456789"):
            raise Error(f"{folder}: pictures must lie in folders named 0 to 9")
        for file in find_files([str(folder)], Counter()):
            labelled.append((file, int(folder.name)))
    if not labelled:
        raise Error(f"no pictures in folders named 0 to 9 in {' '.join(paths)}")
    return labelled


def write_idx(path: Path, values: np.ndarray) -> None:
    """MNIST's format: type, number of dimensions, their lengths, then the bytes."""
    lengths = np.array(values.shape, ">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes())


def make_dataset(target: Path, labelled: list[tuple[str, int]]) -> list[Reading]:
    """Write the labelled files' digits to `target`, every fifth of each to the test set.

    Returns what was left out. Raises Error if `target` is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Error(f"{target} exists and is not empty; name another folder")
    left_out, images = [], [[] for _ in range(10)]
    labels = dict(labelled)
    for batch in prepare_files(tqdm(labels, unit=" images", disable=None)):
        for reading in batch:
            if reading.digits and len(reading.digits.images) > 1:
                count = len(reading.digits.images)
                reading = Reading(reading.file, f"{count} digits in one picture")
            if reading.error:
                left_out.append(reading)
            else:
                images[labels[reading.file]].append(reading.digits.images[0])
    split = {"train": [], "t10k": []}
    for label in range(10):
        for number, image in enumerate(images[label], 1):
            name = "t10k" if number % 5 == 0 else "train"
            split[name].append((image, label))
    if not split["train"]:
        raise Error("no picture of a single digit")
    raw = target / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, pairs in split.items():
        pixels = np.array([image for image, _ in pairs], np.uint8)
        numbers = np.array([label for _, label in pairs], np.uint8)
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels.reshape(-1, 28, 28))
        write_idx(raw / f"{name}-labels-idx1-ubyte", numbers)
    return left_out


# %% Command line
def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Read handwritten digits and numbers in pictures."
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="picture, folder, or - for stdin")
    add(
        "--weights",
        default="data/mnist_cnn.pt",
        help="state_dict: a file or a URL (default: %(default)s)",
    )
    add(
        "--plots",
        type=Path,
        help="folder for readings.png: the first 25 pictures with a box around each "
        "digit; needs matplotlib",
    )
    form = parser.add_mutually_exclusive_group()
    add = form.add_argument
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", action="store_true", help="print a row of CSV for each line read")
    add(
        "--to-mnist",
        type=Path,
        metavar="DIR",
        help="write the pictures in folders named 0 to 9 in IMAGE to DIR, for train.py",
    )
    args = parser.parse_args(argv)
    if args.plots and args.to_mnist:
        parser.error("--plots shows what was read; --to-mnist reads nothing")
    return args


def say(picture: dict) -> Iterator[str]:
    """A line of text for each line of writing."""
    name = picture["file"]
    for line, number in enumerate(picture["lines"]):
        digits = [digit for digit in picture["digits"] if digit["line"] == line]
        values = [digit["probability"] for digit in digits]
        probability = float(np.prod(values))
        text = f"{name:<17}  {number:<12} {100 * probability:6.1f} %"
        least = int(np.argmin(values))
        other = int(np.argsort(digits[least]["probabilities"])[-2])
        second = digits[least]["probabilities"][other]
        second *= probability / values[least]
        if second >= 0.01:
            instead = f"{number[:least]}{other}{number[least + 1 :]}"
            text += f"   (also {instead}: {100 * second:.1f} %)"
        if min(values) < UNSURE:
            text += "   unsure"
        yield text
        name = ""


def say_rows(picture: dict) -> Iterator[list]:
    """A row of CSV for each line of writing: file, line from 1, number, probability."""
    for line, number in enumerate(picture["lines"]):
        values = [d["probability"] for d in picture["digits"] if d["line"] == line]
        yield [picture["file"], line + 1, number, f"{np.prod(values):.6f}"]


def report(model: SimpleCNN, args: argparse.Namespace) -> int:
    """Print what each picture says; return 1 if one could not be read, else 0."""
    passed_over, pictures, errors, shown = Counter(), [], [], []
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        rows.writerow(["file", "line", "number", "probability"])
    reading = None
    readings = read_files(model, find_files(args.images, passed_over))
    quiet = sys.stdout.isatty() or None
    for reading in tqdm(readings, unit=" images", disable=quiet):
        if reading.error:
            print(f"error: {reading.file}: {reading.error}", file=sys.stderr)
            errors.append(dict(file=reading.file, error=reading.error))
            continue
        picture = describe(reading)
        if args.plots and len(shown) < 25:
            shown.append((reading, picture))
        if args.json:
            pictures.append(picture)
        elif args.csv:
            rows.writerows(say_rows(picture))
        else:
            print(*say(picture), sep="\n")
        sys.stdout.flush()  # lines appear as pictures are read
    if args.json:
        print(json.dumps(dict(images=pictures, errors=errors)))
    if passed_over:
        count = passed_over.total()
        print(f"note: passed over {count} other files:", *passed_over, file=sys.stderr)
    if shown:
        save_plot(shown, args.plots / "readings.png")
    if reading is None:
        raise Error(f"no images in {' '.join(args.images)}")
    return 1 if errors else 0


def save_plot(shown: list[tuple[Reading, dict]], path: Path) -> None:
    """Draw a row for each picture: it with a box around each digit, and what was seen."""
    from matplotlib.figure import Figure  # optional: ten packages that few runs need

    figure = Figure((9, 3 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for (whole, close), (reading, picture) in zip(axes, shown):
        images = reading.digits.images
        if reading.file != "-":
            pixels, (width, height) = thumbnail(reading.file)
            whole.imshow(pixels, extent=(0, width, height, 0))
        name = os.path.basename(reading.file)[-40:]
        whole.set_title(name, fontsize=8, parse_math=False)
        for digit in picture["digits"]:
            x, y, w, h = digit["box"]
            colour = "red" if digit["unsure"] else "blue"
            whole.plot([x, x + w, x + w, x, x], [y, y, y + h, y + h, y], colour, lw=0.7)
            whole.text(x, y, digit["digit"], color=colour, va="bottom")
        columns = min(len(images), 10)
        blank = -len(images) % columns
        padded = np.pad(images, ((0, blank), (1, 1), (1, 1)), constant_values=90)
        rows = padded.reshape(-1, columns, 30, 30).swapaxes(1, 2)
        close.imshow(rows.reshape(-1, 30 * columns), cmap="gray")
        whole.axis("off")
        close.axis("off")
    figure.savefig(path)


def thumbnail(file: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture at most 400 pixels wide and high, upright, and its own width and height."""
    image = open_picture(file)
    longer = max(image.size)
    pixels = decode(image)
    scale = longer / max(pixels.shape)
    size = tuple(round(scale * length) for length in pixels.shape[1::-1])
    return resize(pixels, min(1, 400 / max(pixels.shape))), size


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.to_mnist:
        left_out = make_dataset(args.to_mnist, find_labelled(args.images))
        for reading in left_out:
            print(f"note: left out {reading.file}: {reading.error}", file=sys.stderr)
        return 0
    if args.plots:
        if not find_spec("matplotlib"):
            command = "uv run --with matplotlib read.py --plots DIR IMAGE"
            raise Error(f"--plots needs matplotlib: {command}")
        args.plots.mkdir(parents=True, exist_ok=True)
    return report(load_weights(args.weights), args)


# %% Process
if __name__ == "__main__":
    gc.enable()
    gc.freeze()  # no garbage collection at exit: saves 0.4 s
    cv2.setNumThreads(1)  # a picture for each core, not several cores for a picture
    warnings.filterwarnings("ignore", module="PIL")  # of large pictures, odd metadata
    try:
        status = main(["--help"] if "ipykernel" in sys.modules else None)
        sys.stdout.flush()
    except BrokenPipeError:  # of a `| head`; as Python's documentation has it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (Error, OSError) as error:
        status = "error: " + " ".join(str(error).split())
    except KeyboardInterrupt:
        status = 130
    if status:
        sys.exit(status)
