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

# %% Start
"""Read handwritten digits and numbers in pictures with the weights of train.py.

    uv run read.py photo.jpg scans/           files, folders, or - for stdin
    uv run read.py --json photo.jpg           boxes and probabilities, for programs
    uv run read.py --to-mnist own labelled/   own pictures, for train.py

A line of writing is a line of output:

    photo.jpg          1985     98.2 %
    sheet.jpg          12345    97.0 %
                       67890    99.1 %
"""

import argparse
import csv
import gc
import io
import json
import os
import re
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

# In a notebook or a test, the settings of the process are not for this file to change.
AS_COMMAND = __name__ == "__main__" and "ipykernel" not in sys.modules
if AS_COMMAND:
    # Without garbage collection the script starts 0.3 to 0.4 s sooner.
    gc.disable()
    # A name that the output's encoding lacks is escaped, as on old Windows.
    sys.stdout.reconfigure(errors="backslashreplace")
    # Idle threads stop spinning sooner: on a busy machine this is twice as fast.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

UNSURE = 0.6  # about half of the answers below this probability are wrong


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers, with 225,034 parameters.

    It takes (N, 1, 28, 28) float32 from `normalize` and gives (N, 10) logits.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 5 * 5, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        # relu comes after pooling: the same result from a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def normalize(images: Tensor) -> Tensor:
    """Standardize (N, 28, 28) uint8 as MNIST's, to (N, 1, 28, 28) float32."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


@torch.inference_mode()
def classify(model: SimpleCNN, images: Tensor) -> Tensor:
    """The (N, 10) float32 logits, on the CPU, of (N, 28, 28) uint8 images."""
    batches = images.to(model.fc1.weight.device).split(100)  # fit a CPU's cache
    return torch.cat([model(normalize(batch)) for batch in batches]).cpu()


def load_weights(
    source: str, network: type = SimpleCNN, made_by: str = "train.py"
) -> nn.Module:
    """Return the network with the weights in a file or at a URL; raises Error.

    They are a state_dict, alone or in a checkpoint.
    """
    model, file = network(), os.path.expanduser(source)
    try:
        if "://" in source:
            with urllib.request.urlopen(source, timeout=10) as answer:
                file = io.BytesIO(answer.read())
        state = torch.load(file, "cpu", weights_only=True)
        for key in ("state_dict", "model_state_dict", "model"):
            state = state.get(key, state)
        # DistributedDataParallel and torch.compile prefix the names.
        prefix = re.compile(r"^((module|_orig_mod)\.)+")
        model.load_state_dict({prefix.sub("", name): x for name, x in state.items()})
    except OSError as error:
        advice = f"`uv run {made_by}` makes them"
        raise Error(f"no weights in {source} ({error}); {advice}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[:2])
        reason = f"{source} does not fit {network.__name__} in this script: {reason}"
        raise Error(reason) from None
    except Exception:  # torch's own message would advise to run a file's code
        advice = "make it with torch.save(model.state_dict(), path)"
        raise Error(f"{source} is not a state_dict; {advice}") from None
    if not all(p.isfinite().all() for p in model.parameters()):
        raise Error(f"{source} is not finite; train again, with a smaller --lr")
    return model.eval().to(memory_format=torch.channels_last)  # twice as fast


# %% Handwriting: from a picture to digits that look like MNIST's
# Ink is contrast with the paper. The level is the median ink of the digits, and
# heights are multiples of a digit's height. A first look finds where the digits are;
# a close look finds their strokes.
OVERVIEW = 192  # pixels of the longer side, to judge the whole picture
FIRST = 400  # pixels of the longer side in the first look; at 192 long rows merge
CLOSE = 100  # pixels of a digit's height in the close look
LARGEST = 1600  # pixels of the longer side: bounds time and memory
FRAME = 0.3  # of the picture's range: least contrast of a frame with the page
PAPER = 1 / 3, 0.7  # of the longer side, heights (close look): wider is paper
BLUR = 0.07  # heights: with less, grain breaks strokes; with more, strokes merge
DARKEST = 38, 255  # least divisor for dark, for light ink: with less, noise is ink
RULE = 1.3  # heights of straight ink: without, ruled paper is read
WEAK = 0.15, 0.25  # of the level: thresholds without which faint strokes break
STRONG = 0.6  # of the level: without, a shadow swallows the digit
SHARP = 1.8  # half of a blob must exceed so many thresholds; else grain is ink
THICK = 0.15  # of a blob's length: deeper ones with little strong ink are shadow
EDGE = 0.45, 0.15  # of the most ink in a square of so many heights: less fills 8s
BLANK = 0.035  # least level × sharpness³: more refuses pencil, less reads paper
SMALLEST = 0.025  # of the longer side: lower digits are grain
GAP = 0.08  # heights: a vertical gap up to this is a break in a stroke
FLAG = 0.55, 0.1  # heights: a piece up to this size, so near, joins a digit
LONE = 0.4  # heights: smaller pieces are dots and dashes
OUTSIDE = 0.1  # heights beyond the first look's digits: what lies there is left out
ALONG = 0.5  # of a blob's size along the picture's edge: more is a dark object
OVERLAP = 0.25  # of the smaller digit's height: with more, both are in one line
STROKE = 2, 3.5  # pixels of 28: MNIST's stroke width
CENTRE = 14  # pixels of 28: MNIST's mean centre of mass


class Found(NamedTuple):
    """The digits of a picture in reading order."""

    images: np.ndarray  # (n, 28, 28) uint8, light on black
    boxes: np.ndarray  # (n, 4) x, y, width, height in pixels of the picture
    lines: list[int]  # the line of writing of each, from 0
    marks: list[list]  # of each line: boxes of what is no digit, and of wide gaps


class Blobs(NamedTuple):
    """Connected ink; the first blob is the paper."""

    labels: np.ndarray  # (h, w) int32: the blob of each pixel
    boxes: np.ndarray  # (n, 4) int: left, top, right, bottom
    sizes: np.ndarray  # (n,) the larger of height and half the width; 0 if no digit
    height: float  # of a digit: the median of the sizes, weighted by ink


def resize(pixels: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(scale * length)) for length in pixels.shape[1::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=how)


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def square(side: float) -> np.ndarray:
    return np.ones([int(side) | 1] * 2, np.uint8)


def is_mnist(grey: np.ndarray) -> bool:
    """Is it light on black in at most 20 of 28 pixels, its mass in the middle?"""
    if grey.shape != (28, 28) or border(grey).mean() >= 64 or np.ptp(grey) < 32:
        return False
    _, _, w, h = cv2.boundingRect((grey > 24).astype(np.uint8))
    m = cv2.moments(grey)
    x, y = m["m10"] / m["m00"], m["m01"] / m["m00"]
    return max(w, h) <= 20 and max(abs(x - CENTRE), abs(y - CENTRE)) < 1


def find_surroundings(grey: np.ndarray) -> np.ndarray:
    """(h, w) uint8 mask of a frame or table around the page.

    It covers most of the border, and the rest fills over 88 % of its own rectangle.
    A tightly cropped 0 fills only 79 % (pi / 4), so that it is no page.
    """
    paper = np.full_like(grey, np.median(grey))
    unlike = cv2.absdiff(grey, paper) >= FRAME * np.ptp(grey)
    padded = np.pad(unlike, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(padded, connectivity=4)
    around = (labels[1:-1, 1:-1] == 1).astype(np.uint8)  # the padding joins it
    page = cv2.findNonZero(1 - around)
    if page is None or border(unlike).mean() <= 0.8:
        return np.zeros_like(grey)
    _, (w, h), _ = cv2.minAreaRect(page)
    return around * (len(page) > 0.88 * (w + 1) * (h + 1))


def is_light(grey: np.ndarray) -> bool:
    """Is the ink lighter than the paper? Ink is rarer, so skewness shows its side."""
    detail = np.log(grey.astype(np.float32) + 8)  # uneven light becomes an offset
    detail -= cv2.blur(detail, (65, 65), borderType=cv2.BORDER_REPLICATE)
    detail /= detail.std() + 1e-6
    skewness = cv2.pow(np.pad(detail, 24, "edge"), 3).mean()  # the border is paper
    return bool(skewness > 1.5 * border(detail).mean())


def measure_ink(grey: np.ndarray, light: bool, wide: float, room: float) -> np.ndarray:
    """(h, w) float32 contrast with the paper: what is narrower than `wide` is ink.

    The border is padded by `room`. Without it, fading light there becomes ink; with
    too much, strokes there become paper.
    """
    h, w = grey.shape
    room = round(room)
    how = cv2.MORPH_OPEN if light else cv2.MORPH_CLOSE
    paper = cv2.morphologyEx(np.pad(grey, room, "edge"), how, square(wide))
    paper = paper[room : room + h, room : room + w]
    divisor = cv2.max(paper, grey).clip(DARKEST[light])
    return cv2.absdiff(paper, grey) / divisor.astype(np.float32)


def erase_lines(ink: np.ndarray, length: int) -> np.ndarray:
    """Take away the ink of lines straight across or down, as on ruled paper."""
    whole = (255 * ink).astype(np.uint8)
    for shape in ((1, length), (length, 1)):
        how = cv2.MORPH_OPEN, np.ones(shape, np.uint8)
        lines = cv2.morphologyEx(whole, *how, None, None, 1, cv2.BORDER_CONSTANT, 0)
        ink = (ink - lines / np.float32(255)).clip(0)
    return ink


def find_strokes(ink: np.ndarray, level: float) -> np.ndarray:
    """(h, w) bool: strong ink and, where a blob is sharp and no shadow, weak ink."""
    strong = ink > STRONG * level
    strokes = strong.copy()
    for threshold in WEAK:
        weak = (ink > threshold * level).astype(np.uint8)
        n, labels, stats, _ = cv2.connectedComponentsWithStats(weak)
        depth = cv2.distanceTransform(weak, cv2.DIST_L2, 3)
        parts = [
            ink > SHARP * threshold * level,
            strong,
            depth > THICK * stats[:, 2:4].max(1)[labels],
        ]
        area = stats[:, cv2.CC_STAT_AREA]
        sharp, solid, deep = (np.bincount(labels[x], minlength=n) / area for x in parts)
        good = (sharp > 0.5) & ((solid > 0.3) | (deep == 0))
        good[0] = False
        strokes |= good[labels]
    return strokes


def find_blobs(ink: np.ndarray, level: float, height: float = 0) -> Blobs:
    """Connected ink; a height also joins broken strokes and cuts soft edges."""
    strokes = find_strokes(ink, level)
    bridge = np.ones((int(GAP * height) + 1, 1), np.uint8)
    joined = cv2.morphologyEx(strokes.astype(np.uint8), cv2.MORPH_CLOSE, bridge)
    n, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    if height:
        strokes &= ink >= EDGE[0] * cv2.dilate(ink, square(EDGE[1] * height))
    labels *= strokes
    mass = np.bincount(labels.ravel(), (ink - STRONG * level).clip(0).ravel(), n)
    mass[0] = 0
    boxes = stats[:, :4]
    w, h = boxes[:, 2:].T
    sizes = np.maximum(h, w / 2)
    mass[(w > 0.95 * ink.shape[1]) & (h < 0.12 * w)] = 0  # a ruled line
    boxes[:, 2:] += boxes[:, :2]
    for i in mass.argsort()[-4:]:  # with other ink in a hole: a frame
        left, top, right, bottom = boxes[i]
        inside = labels[top:bottom, left:right]
        other = np.pad(inside != i, 1, constant_values=True).astype(np.uint8)
        _, paper = cv2.connectedComponents(other, connectivity=4)
        if mass[np.unique(inside[paper[1:-1, 1:-1] > 1])].sum() > 0.1 * mass[i]:
            mass[i] = 0
    sizes[mass == 0] = 0
    order = sizes.argsort()
    total = (mass * sizes)[order].cumsum()
    middle = order[np.searchsorted(total, total[-1] / 2)]
    return Blobs(labels, boxes, sizes, sizes[middle])


def join_pieces(blobs: Blobs) -> list[list[int]]:
    """The blobs of each digit."""
    most, near = np.multiply(FLAG, blobs.height)
    large = np.flatnonzero(blobs.sizes > most)
    digits = [[i] for i in large]
    starts, ends = blobs.boxes[:, :2], blobs.boxes[:, 2:]
    for i in np.flatnonzero((blobs.sizes > 0) & (blobs.sizes <= most)):
        gaps = np.maximum(starts[i] - ends[large], starts[large] - ends[i]).clip(0)
        distance = np.hypot(*gaps.T)
        if distance.min(initial=np.inf) < near:
            digits[distance.argmin()].append(i)
        elif blobs.sizes[i] > LONE * blobs.height:
            digits.append([i])
    return digits


def group_lines(boxes: np.ndarray) -> list[list[int]]:
    """The indices of the boxes (x, y, width, height) of each line, in reading order.

    From left to right, a digit joins the line whose last digit lies beside it, after
    a move along the slope of that line.
    """
    x, y, w, height = boxes.T
    x, y, lines = x + w / 2, y + height / 2, []
    for i in x.argsort():
        overlaps = []
        for line in lines:
            before, last = line[-3 if len(line) > 2 else -1], line[-1]
            slope = (y[last] - y[before]) / max(x[last] - x[before], 1)
            move = np.clip(slope, -1, 1) * min(x[i] - x[last], 2 * height[last])
            common = (height[i] + height[last]) / 2 - abs(y[i] - y[last] - move)
            overlaps.append(common / min(height[i], height[last]))
        if max(overlaps, default=0) > OVERLAP:
            lines[np.argmax(overlaps)].append(i)
        else:
            lines.append([i])
    return sorted(lines, key=lambda line: y[line].mean())


def fit(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool to (28, 28) uint8 with strokes of MNIST's width.

    As in MNIST (LeCun et al. 1998) the longer side has 20 pixels and the centre of mass
    is in the middle.
    """
    unit = max(mask.shape) / 20
    digit = np.pad(mask, int(2 * unit) + 2).astype(np.uint8)
    depth = cv2.distanceTransform(digit, cv2.DIST_L2, 5)
    width = (4 * depth[digit > 0].mean() - 1) / unit  # a stroke is 4 mean depths wide
    grow = max(unit * (np.clip(width, *STROKE) - width) / 2, -depth.max())
    outside = cv2.distanceTransform(1 - digit, cv2.DIST_L2, 5)
    # outside - depth is the signed distance from the outline.
    digit = 255 * (outside - depth <= grow).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(digit)
    digit = resize(digit[y : y + h, x : x + w], 20 / max(w, h))
    (h, w), m = digit.shape, cv2.moments(digit)
    left = min(max(round(CENTRE - m["m10"] / m["m00"]), 0), 28 - w)
    top = min(max(round(CENTRE - m["m01"] / m["m00"]), 0), 28 - h)
    return np.pad(digit, ((top, 28 - top - h), (left, 28 - left - w)))


def find_level(ink: np.ndarray, boxes: np.ndarray) -> float:
    corners = boxes.clip(0).astype(int)
    return float(np.median([ink[y : v + 1, x : u + 1].max() for x, y, u, v in corners]))


def look(grey: np.ndarray, light: bool) -> tuple[np.ndarray, float]:
    """The digits' boxes (left, top, right, bottom) and height."""
    longer = max(grey.shape)
    scale = np.clip(longer, OVERVIEW, FIRST) / longer
    small = cv2.blur(resize(grey, scale), (3, 3))
    longer *= scale
    ink = measure_ink(small, light, PAPER[0] * longer, longer / 6)
    soft = cv2.blur(ink, (3, 3))
    level, last = soft.max(), np.inf
    while level < 0.8 * last:  # first the strongest ink's, then the digits'
        blobs = find_blobs(ink, level)
        if blobs.height < SMALLEST * longer:
            raise Error("no ink found")
        found = blobs.sizes > LONE * blobs.height
        at_edge = np.bincount(border(blobs.labels), minlength=len(found))
        inner = found & (at_edge < ALONG * blobs.sizes)  # else a dark object's edge
        boxes = blobs.boxes[inner if inner.any() else found]
        level, last = find_level(soft, boxes), level
    return boxes / scale, blobs.height / scale


def look_closer(grey: np.ndarray, light: bool, boxes: np.ndarray, height: float):
    """The Found near the boxes of a first look."""
    start = (boxes[:, :2].min(0) - 0.6 * height).clip(0).astype(int)
    end = (boxes[:, 2:].max(0) + 0.6 * height).astype(int) + 1
    near = grey[start[1] : end[1], start[0] : end[0]]
    scale = min(CLOSE / height, LARGEST / max(near.shape))
    height *= scale
    boxes = (boxes - np.tile(start, 2)) * scale
    near = cv2.blur(resize(near, scale), [round(BLUR * height) | 1] * 2)
    ink = measure_ink(near, light, PAPER[1] * height, 0.1 * height)
    ink = erase_lines(ink, int(RULE * height))
    level = find_level(cv2.blur(ink, (3, 3)), boxes)
    blobs = find_blobs(ink, level, height)
    middle = (blobs.boxes[:, :2] + blobs.boxes[:, 2:]) / 2
    outside = middle < boxes[:, :2].min(0) - OUTSIDE * height
    outside |= middle > boxes[:, 2:].max(0) + OUTSIDE * height
    blobs.sizes[outside.any(1)] = 0
    sharp = (ink > 0.45 * level).sum() / max(1, (ink > 0.25 * level).sum())
    full = (blobs.labels > 0).mean()
    if not blobs.sizes.any() or full > 0.7 or level * sharp**3 < BLANK:
        raise Error("no ink found")
    images, found = [], []
    for digit in join_pieces(blobs):
        mask = np.isin(blobs.labels, digit)
        x, y, w, h = box = cv2.boundingRect(mask.astype(np.uint8))
        images.append(fit(mask[y : y + h, x : x + w]))
        found.append(box)
    found = np.array(found) / scale
    found[:, :2] += start
    lines = group_lines(found)
    order = np.concatenate(lines)
    numbers = np.repeat(range(len(lines)), [len(line) for line in lines])
    marks = [[] for _ in lines]
    return Found(np.stack(images)[order], found[order], numbers.tolist(), marks)


def find_digits(pixels: np.ndarray) -> Found:
    """The digits in (h, w, 3) uint8 pixels; raises Error if there are none.

    A 28×28 picture that is laid out like MNIST stays as it is.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if is_mnist(grey):
        return Found(grey[None], np.array([[0, 0, 28, 28]]), [0], [[]])
    deviation = cv2.meanStdDev(pixels)[1]
    if deviation.max() > 1.5 * cv2.meanStdDev(grey)[1].item():  # red on blue
        grey = np.ascontiguousarray(pixels[..., deviation.argmax()])
    small = cv2.blur(resize(grey, OVERVIEW / max(grey.shape)), (3, 3))
    brighter = 255 / max(1, int(small.max()))
    small, grey = (cv2.convertScaleAbs(x, alpha=brighter) for x in (small, grey))
    around, paper = find_surroundings(small), np.median(small)
    small[around > 0] = paper
    grey[cv2.resize(around, grey.shape[::-1]) > 0] = paper
    light = is_light(small)
    return look_closer(grey, light, *look(grey, light))


# %% Pictures
@cache
def known_suffixes() -> set[str]:
    """The suffixes that Pillow opens; also registers HEIC, the format of iPhones."""
    from pi_heif import register_heif_opener  # here: it changes Pillow for all

    register_heif_opener()
    formats = Image.registered_extensions().items()
    return {suffix for suffix, kind in formats if kind in Image.OPEN}


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Any numbers to uint8: uint8 as it is, others from least to largest."""
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    return cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


def open_picture(picture) -> Image.Image:
    """A path, file, PIL image or array as a PIL image."""
    if isinstance(picture, Image.Image):
        return picture.copy()  # `decode` may reduce it
    if isinstance(picture, (str, os.PathLike, io.IOBase)):
        known_suffixes()  # registers HEIC
        return Image.open(picture)
    values = np.asarray(picture)
    colours = values.shape[2:] if values.ndim > 1 else None
    if not values.size or colours not in [(), (3,), (4,)]:
        raise Error(f"shape {values.shape} is not (h, w), (h, w, 3) or (h, w, 4)")
    return Image.fromarray(to_bytes(values))


def decode(image: Image.Image) -> tuple[np.ndarray, float]:
    """(h, w, 3) uint8, upright, at most 1600×1600; and the factor of its reduction."""
    longer = max(image.size)
    image.draft("RGB", (LARGEST, LARGEST))  # decodes large JPEGs at a reduced size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32 bits, of whatever range
        image = Image.fromarray(to_bytes(np.asarray(image.convert("F"))))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        for paper in ("white", "black"):  # white ink shows on black only
            image = Image.alpha_composite(Image.new("RGBA", layer.size, paper), layer)
            if image.convert("L").getextrema()[0] <= 240:
                break
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image.convert("RGB")), longer / max(image.size)


def prepare(picture) -> Found | str:
    """The digits of a picture ("-" is stdin), or a string that says why none."""
    try:
        stdin = isinstance(picture, str) and picture == "-"
        source = io.BytesIO(sys.stdin.buffer.read()) if stdin else picture
        pixels, reduction = decode(open_picture(source))
        digits = find_digits(pixels)
        return digits._replace(boxes=digits.boxes * reduction)
    except UnidentifiedImageError:
        return "not an image, or a damaged one"
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return " ".join(reason.split())


def prepare_all(pictures: Iterable) -> Iterator[list[tuple[object, Found | str]]]:
    """Each picture and what `prepare` returns, in lists of 100 to limit memory."""
    pictures = iter(pictures)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while batch := list(islice(pictures, 100)):
            yield list(zip(batch, pool.map(prepare, batch), strict=True))


def describe(digits: Found, probabilities: Tensor) -> dict:
    lines, entries = [""] * (digits.lines[-1] + 1), []
    found = digits.lines, digits.boxes, probabilities.tolist()
    for line, box, p in zip(*found, strict=True):
        digit = int(np.argmax(p))
        lines[line] += str(digit)
        entry = {"line": line, "digit": digit, "probability": p[digit]}
        entry |= {"unsure": p[digit] < UNSURE, "probabilities": p}
        entries.append(entry | {"box": np.round(box).astype(int).tolist()})
    unsure = any(entry["unsure"] for entry in entries)
    probability = float(probabilities.amax(1).prod())
    answer = {"lines": lines, "probability": probability, "unsure": unsure}
    return answer | {"digits": entries}


def read_all(model: SimpleCNN, pictures: Iterable) -> Iterator[tuple]:
    """For each picture what --json prints of it, and its (n, 28, 28) uint8 digits."""
    for batch in prepare_all(pictures):
        good = [found for _, found in batch if isinstance(found, Found)]
        images = [torch.empty(0, 28, 28, dtype=torch.uint8)]
        images += [torch.from_numpy(found.images) for found in good]
        answers = classify(model, torch.cat(images)).softmax(1)
        answers = iter(answers.split([len(found.lines) for found in good]))
        for picture, found in batch:
            name = isinstance(picture, (str, os.PathLike))
            file = {"file": str(picture) if name else ""}
            if isinstance(found, str):
                yield file | {"error": found}, None
            else:
                yield file | describe(found, next(answers)), found.images


def read_picture(model: SimpleCNN, picture) -> dict:
    """What a path, PIL image or array (h, w), (h, w, 3) or (h, w, 4) says.

    "lines" has a string of digits for each line of writing, "probability" is that of
    all, and "digits" has each digit's "line", "digit", "probability", ten
    "probabilities" and "box": x, y, width, height in pixels of the upright picture.
    "unsure" marks what is doubtful. Raises Error if there is nothing to read.
    """
    [(answer, _)] = read_all(model, [picture])
    if "error" in answer:
        raise Error(answer["error"])
    return answer


def find_files(paths: list[str], passed_over: Counter) -> Iterator[str]:
    """The files in `paths`, and folders' pictures by name; counts other suffixes."""
    known = known_suffixes()
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for file in filter(Path.is_file, sorted(Path(path).rglob("*"))):
            if file.suffix.lower() in known:
                yield str(file)
            else:
                passed_over[file.suffix or file.name] += 1


# %% Own pictures for train.py
def find_labelled(paths: list[str]) -> dict[str, int]:
    """The pictures in folders 0 to 9 below `paths`, and their labels; raises Error."""
    labels = {}
    for folder in sorted(child for path in paths for child in Path(path).iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if folder.name not in [*"0123456789"]:
            raise Error(f"{folder}: pictures must lie in folders named 0 to 9")
        files = find_files([str(folder)], Counter())
        labels |= dict.fromkeys(files, int(folder.name))
    return labels


def write_mnist(target: Path, paths: list[str]) -> Iterator[str]:
    """Write the labelled pictures in MNIST's layout, every fifth of a digit for tests.

    Yields what was left out. Raises Error.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Error(f"{target} exists and is not empty; name a new folder")
    labels = find_labelled(paths)
    kept = []
    for batch in prepare_all(tqdm(labels, unit=" images", disable=None)):
        for file, found in batch:
            if isinstance(found, str):
                yield f"{file}: {found}"
            elif len(found.lines) > 1:
                yield f"{file}: {len(found.lines)} digits"
            else:
                kept.append((labels[file], found.images[0]))
    if not kept:
        raise Error("no picture of one digit in folders named 0 to 9")
    digits = np.array([digit for digit, _ in kept], np.uint8)
    images = np.stack([image for _, image in kept])
    count = [np.sum(digits[: i + 1] == digit) for i, digit in enumerate(digits)]
    fifth = np.array(count) % 5 == 0
    raw = target / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, chosen in (("train", ~fifth), ("t10k", fifth)):
        if not chosen.any():  # fewer than five pictures of each digit
            continue
        write_idx(raw / f"{name}-images-idx3-ubyte", images[chosen])
        write_idx(raw / f"{name}-labels-idx1-ubyte", digits[chosen])


def write_idx(path: Path, values: np.ndarray) -> None:
    shape = np.array(values.shape, ">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())


# %% Command line
def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="picture, folder, or - for stdin")
    add("--weights", default="data/mnist_cnn.pt", help="a file or a URL")
    plots = "draw the first 25 into DIR/readings.png; needs matplotlib"
    add("--plots", type=Path, metavar="DIR", help=plots)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", action="store_true", help="print a row for each line of writing")
    own = "write pictures in folders 0 to 9 below IMAGE to DIR, for train.py --also DIR"
    add("--to-mnist", type=Path, metavar="DIR", help=own)
    return parser.parse_args(argv)


def print_text(picture: dict, rows) -> None:
    """Print a line for each line of writing or, with a csv.writer, a row."""
    name = picture["file"]
    for line, number in enumerate(picture["lines"]):
        digits = [digit for digit in picture["digits"] if digit["line"] == line]
        values = [digit["probability"] for digit in digits]
        p = float(np.prod(values))
        if rows:
            rows.writerow([name, line + 1, number, f"{p:.6f}"])
            continue
        at = int(np.argmin(values))  # the digit that is most in doubt
        other = int(np.argsort(digits[at]["probabilities"])[-2])
        second = p / values[at] * digits[at]["probabilities"][other]
        words = "   unsure" if values[at] < UNSURE else ""
        if second >= 0.01:
            also = f"{number[:at]}{other}{number[at + 1 :]}"
            words += f"   (also {also}: {100 * second:.1f} %)"
        print(f"{name:<17}  {number:<7} {100 * p:5.1f} %{words}", flush=True)
        name = ""


def report(model: SimpleCNN, args: argparse.Namespace) -> int:
    """Print what each picture says; return 1 if one could not be read, else 0."""
    passed_over, rows, shown = Counter(), None, []
    results = {"images": [], "errors": []}
    if args.csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow(["file", "line", "number", "probability"])
    readings = read_all(model, find_files(args.images, passed_over))
    quiet = sys.stdout.isatty() or None
    for picture, images in tqdm(readings, unit=" images", disable=quiet):
        kind = "errors" if images is None else "images"
        results[kind].append(picture if args.json else None)
        if images is None:
            print("error: {file}: {error}".format(**picture), file=sys.stderr)
            continue
        if len(shown) < 25:
            shown.append((picture, images))
        if not args.json:
            print_text(picture, rows)
    if args.json:
        print(json.dumps(results))
    if passed_over:
        note = f"note: passed over {passed_over.total()} other files:"
        print(note, *passed_over, file=sys.stderr)
    if args.plots and shown:
        plot(shown, args.plots / "readings.png")
    if not any(results.values()):
        raise Error(f"no images in {' '.join(args.images)}")
    return 1 if results["errors"] else 0


def plot(shown: list[tuple[dict, np.ndarray]], path: Path) -> None:
    """Draw each picture with a box around each digit, and beside it what was seen."""
    from matplotlib.figure import Figure  # optional: ten packages that few runs need

    figure = Figure((9, 3 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), (picture, images) in zip(axes, shown, strict=True):
        if picture["file"] != "-":
            pixels, reduction = decode(open_picture(picture["file"]))
            h, w = np.multiply(pixels.shape[:2], reduction)
            left.imshow(pixels, extent=(0, w, h, 0))
        name = os.path.basename(picture["file"])[-40:]
        left.set_title(name, fontsize=8, parse_math=False)
        for digit in picture["digits"]:
            x, y, w, h = digit["box"]
            colour = "red" if digit["unsure"] else "blue"
            left.plot([x, x + w, x + w, x, x], [y, y, y + h, y + h, y], colour, lw=0.7)
            left.text(x, y, digit["digit"], color=colour)
        padded = np.pad(images, ((0, -len(images) % 10), (0, 2), (0, 2)))
        rows = [np.hstack(padded[i : i + 10]) for i in range(0, len(padded), 10)]
        right.imshow(np.vstack(rows), cmap="gray")
        left.axis("off")
        right.axis("off")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.to_mnist:
        for words in write_mnist(args.to_mnist, args.images):
            print(f"note: left out {words}", file=sys.stderr)
        return 0
    if args.plots:
        if not find_spec("matplotlib"):
            command = "uv run --with matplotlib read.py --plots DIR IMAGE"
            raise Error(f"--plots needs matplotlib: {command}")
        args.plots.mkdir(parents=True, exist_ok=True)
    return report(load_weights(args.weights), args)


# %% Process
if __name__ == "__main__":
    if AS_COMMAND:
        gc.freeze()  # saves 0.3 s at exit
    cv2.setNumThreads(1)  # a picture for each core, not several cores for a picture
    warnings.filterwarnings("ignore", module="PIL")  # large pictures, odd metadata
    try:
        status = main(None if AS_COMMAND else ["--help"])
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
