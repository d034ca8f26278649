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

A line of writing is a line of output; it is `unsure` if it is doubtful or other ink
stands in it. Hidden files in folders are left out.

    photo.jpg          1985     98.2 %
    scan.tif page 2    12345    97.0 %
                       67890    99.1 %   unsure
"""

import argparse
import csv
import gc
import io
import json
import math
import os
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import glob
from importlib.util import find_spec
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import NamedTuple

# In a notebook or a test, the settings of the process are not for this file to change.
AS_COMMAND = __name__ == "__main__" and "ipykernel" not in sys.modules
if AS_COMMAND:
    # Without garbage collection the script starts 0.3 to 0.4 s sooner.
    gc.disable()
    # A name that the output's encoding lacks is escaped, as on old Windows.
    sys.stdout.reconfigure(errors="backslashreplace")
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pi_heif import register_heif_opener
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor, nn
from tqdm import tqdm

UNSURE = 0.6  # about half of the answers below this probability are wrong
THREADS = torch.get_num_threads()  # pictures that are read at once
SHOWN = 25  # pages in the figure of --plots
Page = tuple[dict, np.ndarray]  # what --json prints, and (n, 28, 28) uint8 digits


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


def convolutions(before: int, after: int) -> nn.Sequential:
    """Two convolutions with batch norm and relu, and these numbers of channels."""
    layers = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class InkNet(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that finds ink, with 256,936 parameters.

    It takes (N, 1, h, w) float32 from `standardize`, h and w multiples of 32, and gives
    (N, 2, h, w) logits: is it ink, and is the ink a digit's?
    """

    def __init__(self):
        super().__init__()
        channels = 16, 24, 32, 48, 64
        self.stem = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        levels = [(16, 16), *pairwise(channels)]
        self.down = nn.ModuleList(convolutions(a, b) for a, b in levels)
        self.up = nn.ModuleList(convolutions(a + b, a) for a, b in levels[:0:-1])
        self.out = nn.Conv2d(16, 8, 1)  # two logits for each of 2 × 2 pixels

    def forward(self, x: Tensor) -> Tensor:
        x, levels = F.relu(self.stem(x)), []
        for down in self.down:
            x = down(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for up, level in zip(self.up, levels[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), level], 1))
        return F.pixel_shuffle(self.out(x), 2)


def standardize(x: Tensor) -> Tensor:
    """Each of (N, 1, h, w) greys from 0 to 255, less its mean, over its deviation."""
    mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (deviation + 2)  # so that grain of a blank page stays faint


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
# A first look finds how high digits are, a second one their strokes. Heights are those
# of a digit. The numbers were chosen on half of strangers' pictures (tests/README.md).
SIDES = 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024  # pixels of the longer side
LEGIBLE = 18  # pixels of a digit's height, at least, at the side of the first look
CLOSE = 40  # pixels of a digit's height in the second look
AGREE = 1.4  # times: where the two looks differ more, the next side is tried
LARGEST = 1600  # pixels of the longer side: bounds time and memory
WEAK, STRONG = 0.4, 0.9  # probability of ink; a blob reaches the second somewhere
OF_DIGIT, SURELY = 0.4, 0.8  # votes of a digit's ink: at least, and beyond doubt
FLAG, NEAR = 0.55, 0.12  # heights: a piece (of a 5) joins a digit so near
MARK = 0.09  # heights: what is smaller is dirt
OVERLAP = 0.25  # of the smaller digit's height: with more, both are in one line
STROKE, CENTRE = (2, 3.5), 14  # pixels of 28: MNIST's stroke width, centre of mass


class Found(NamedTuple):
    """The digits of a picture in reading order."""

    images: np.ndarray  # (n, 28, 28) uint8, light on black
    votes: np.ndarray  # (n,) probability that it is a digit at all
    boxes: np.ndarray  # (n, 4) x, y, width, height in pixels of the picture
    lines: list[int]  # the line of writing of each, from 0
    marks: list[list]  # of each line: boxes of what is no digit, and of wide gaps


class Blobs(NamedTuple):
    """Connected ink; the first blob is the paper."""

    ink: np.ndarray  # (h, w) float32 probability
    labels: np.ndarray  # (h, w) int32: the blob of each pixel
    boxes: np.ndarray  # (n, 4) int: left, top, right, bottom
    sizes: np.ndarray  # (n,) the larger of height and half the width; 0 if faint
    votes: np.ndarray  # (n,) probability that it is of a digit
    height: float  # of a digit: median of sizes, weighted by ink × size; 0 if none


def resize(pixels: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(scale * length)) for length in pixels.shape[1::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=how)


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def is_mnist(grey: np.ndarray) -> bool:
    """Is it light on black in at most 20 of 28 pixels, its mass in the middle?"""
    if grey.shape != (28, 28) or border(grey).mean() >= 64 or np.ptp(grey) < 32:
        return False
    _, _, w, h = cv2.boundingRect((grey > 24).astype(np.uint8))
    m = cv2.moments(grey)
    x, y = m["m10"] / m["m00"], m["m01"] / m["m00"]
    return max(w, h) <= 20 and max(abs(x - CENTRE), abs(y - CENTRE)) < 1


@torch.inference_mode()
def look(ink: nn.Module, grey: np.ndarray, scale: float) -> Blobs:
    """The ink that the network `ink` finds in a picture, after scaling it."""
    grey = resize(grey, scale)
    h, w = grey.shape
    # Paper all around, as in training, up to multiples of 32.
    size = [32 * math.ceil((n + 24) / 32) for n in (h, w)]
    x = torch.full((1, 1, *size), float(np.median(border(grey))))
    inside = np.s_[..., 12 : 12 + h, 12 : 12 + w]
    x[inside] = torch.from_numpy(grey)
    p = ink(standardize(x.to(ink.out.weight.device)))[0].sigmoid().cpu()
    return find_blobs(*p[inside].numpy())


def find_blobs(ink: np.ndarray, digit: np.ndarray) -> Blobs:
    """Connected ink of (h, w) probabilities: of ink, and of ink to be a digit's."""
    n, labels, stats, _ = cv2.connectedComponentsWithStats(np.uint8(ink > WEAK))
    boxes = stats[:, :4]
    sizes = np.maximum(boxes[:, 3], boxes[:, 2] / 2)
    boxes[:, 2:] += boxes[:, :2]
    sizes[np.bincount(labels[ink > STRONG], minlength=n) == 0] = 0
    sizes[0] = 0
    mass, votes = (np.bincount(labels.flat, x.flat, n) for x in (ink, ink * digit))
    votes = np.where(sizes > 0, votes / mass.clip(1e-9), 0)
    order = sizes.argsort()
    total = (mass * sizes * (votes > OF_DIGIT))[order].cumsum()
    middle = order[np.searchsorted(total, total[-1] / 2)]
    height = sizes[middle] if total[-1] else 0
    return Blobs(ink, labels, boxes, sizes, votes, height)


def join_pieces(blobs: Blobs) -> tuple[list[list[int]], list[int]]:
    """The blobs of each digit, and those that are of none."""
    is_small = blobs.sizes <= FLAG * blobs.height
    large = np.flatnonzero((blobs.votes > OF_DIGIT) & ~is_small)
    digits, others = [[i] for i in large], []
    starts, ends = blobs.boxes[:, :2], blobs.boxes[:, 2:]
    for i in np.setdiff1d(np.flatnonzero(blobs.sizes), large):
        gaps = np.maximum(starts[i] - ends[large], starts[large] - ends[i]).clip(0)
        distance = np.hypot(*gaps.T)
        if is_small[i] and distance.min(initial=np.inf) < NEAR * blobs.height:
            digits[distance.argmin()].append(i)
        else:
            others.append(i)
    return digits, others


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
            # The slope of its last three digits, up to two heights on.
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


def find_marks(blobs: Blobs, others: list[int], boxes, lines) -> list[list]:
    """Of each line of digits the boxes of other ink in it, and of wide gaps.

    A gap is wide if it is a height more than twice the median of its line: in less than
    four digits the wide gap itself is the median, or near it.
    """
    marks = [[] for _ in lines]
    line_of = {digit: n for n, line in enumerate(lines) for digit in line}
    x, y, w, h = boxes.T
    height = blobs.height
    for left, top, right, bottom in blobs.boxes[others]:
        middle = (top + bottom) / 2
        away = np.maximum(x - right, left - x - w).clip(0)
        # A comma lies below its line.
        beside = (y < middle) & (middle < y + h + 0.3 * height)
        away = np.where(beside, away, np.inf)
        is_dirt = max(right - left, bottom - top) < MARK * height
        if not is_dirt and away.min() < height:
            box = left, top, right - left, bottom - top
            marks[line_of[away.argmin()]].append(box)
    for line, found in zip(lines, marks, strict=True):
        gaps = x[line[1:]] - (x + w)[line[:-1]]
        usual = np.median(gaps).clip(0) if len(gaps) else 0
        for i in np.flatnonzero(gaps > height + 2 * usual):
            before = line[i]
            found.append((x[before] + w[before], y[before], gaps[i], h[before]))
    return marks


def look_twice(ink: nn.Module, grey: np.ndarray) -> tuple[Blobs, float]:
    """The ink at the scale at which digits are CLOSE high, and that scale.

    The height comes from the first look that the second confirms; else from that which
    is closest to it. Raises Error if there are no digits.
    """
    best, least = None, np.inf
    for side in SIDES:
        scale = side / max(grey.shape)
        first = look(ink, grey, scale)
        if first.height >= LEGIBLE:
            height = first.height / scale
            close = min(CLOSE / height, LARGEST / max(grey.shape))
            blobs = look(ink, grey, close)
            difference = abs(math.log(max(1, blobs.height) / (close * height)))
            if blobs.height and difference < least:
                best, least = (blobs, close), difference
        if least < math.log(AGREE) or (best and scale > 4):  # larger shows no more
            break
    if not best:
        raise Error("no digits found")
    return best


def find_digits(ink: nn.Module, pixels: np.ndarray) -> Found:
    """The digits in (h, w, 3) uint8 pixels; raises Error if there are none.

    A 28×28 picture that is laid out like MNIST stays as it is.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if is_mnist(grey):
        return Found(grey[None], np.ones(1), np.array([[0, 0, 28, 28]]), [0], [[]])
    blobs, scale = look_twice(ink, grey)
    digits, others = join_pieces(blobs)
    # As they stand, right readings would be 10 % less likely than they are right.
    votes = (blobs.votes[[large for large, *_ in digits]] / SURELY).clip(max=1)
    images, boxes = [], []
    for digit in digits:
        left, top = blobs.boxes[digit, :2].min(0)
        right, bottom = blobs.boxes[digit, 2:].max(0)
        part = np.s_[top:bottom, left:right]
        strokes = np.where(np.isin(blobs.labels[part], digit), blobs.ink[part], 0)
        images.append(fit(cv2.resize(strokes, None, fx=2, fy=2) > WEAK))  # smooth
        boxes.append((left, top, right - left, bottom - top))
    boxes = np.array(boxes)
    lines = group_lines(boxes)
    marks = find_marks(blobs, others, boxes, lines)
    order = np.concatenate(lines)
    numbers = np.repeat(range(len(lines)), [len(line) for line in lines])
    boxes, *marks = (np.array(x).reshape(-1, 4) / scale for x in (boxes, *marks))
    images = np.stack(images)[order]
    return Found(images, votes[order], boxes[order], numbers.tolist(), marks)


# %% Pictures
def from_array(values) -> Image.Image:
    """uint8 as it is, other numbers from the least, black, to the largest, white."""
    values = np.asarray(values)
    if values.shape[2:] == (1,):
        values = values[..., 0]
    if not values.size or values.ndim < 2 or values.shape[2:] not in [(), (3,), (4,)]:
        raise Error(f"shape {values.shape} is not (h, w) or (h, w, 1, 3 or 4)")
    if values.dtype != np.uint8:
        values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        values = cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    return Image.fromarray(values)


def open_picture(picture) -> Image.Image:
    """What `read_picture` takes, or "-" for stdin, as a PIL image."""
    register_heif_opener()  # here, as it changes Pillow for all
    if isinstance(picture, Image.Image):
        return picture.copy()  # `draft` would change it
    if hasattr(picture, "read"):
        return open_file(picture)
    if not isinstance(picture, (str, os.PathLike, bytes)):
        return from_array(picture)
    if picture == "-":
        picture = sys.stdin.buffer.read()
    if isinstance(picture, bytes):
        picture = io.BytesIO(picture)
    elif str(picture).lower().endswith(".pdf"):
        raise Error("convert it first: pdftoppm -r 150 -png FILE scan")
    return open_file(picture)


def open_file(file) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if hasattr(file, "seek"):
            file.seek(0)
        with suppress(SyntaxError):  # no JPEG
            image = JpegImageFile(file)
            if "progressive" not in image.info:  # those need memory for all of it
                return image  # `draft` makes it small
        raise


def decode(image: Image.Image) -> tuple[np.ndarray, float]:
    """(h, w, 3) uint8, upright, at most 1600×1600; and the factor of its reduction."""
    longer = max(image.size)
    # A large JPEG is decoded at a reduced size.
    image.draft("RGB", [max(1, LARGEST * side // longer) for side in image.size])
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32 bits, of whatever range
        image = from_array(image.convert("F"))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        for paper in ("white", "black"):  # white ink shows on black only
            image = Image.alpha_composite(Image.new("RGBA", layer.size, paper), layer)
            if image.convert("L").getextrema()[0] <= 240:
                break
    image = image.convert("RGB")  # first: of two colours or a palette no mean is taken
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image), longer / max(image.size)


def decode_pages(picture) -> Iterator[tuple[np.ndarray, float] | str]:
    """What `decode` returns of each page; a string says why there are no more.

    A TIFF's frames are pages. Of those of other formats the first is read.
    """
    try:
        with open_picture(picture) as image:
            frames = ImageSequence.Iterator(image)
            yield from map(decode, frames if image.format == "TIFF" else [image])
    except UnidentifiedImageError:
        yield "not an image, or a damaged one"
    except Image.DecompressionBombError:
        yield f"over {2 * Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first"
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield " ".join(reason.split())


def describe(found: Found, factor: float, probabilities: Tensor) -> dict:
    """What --json prints of the digits `found`, whose boxes grow by `factor`."""

    def scale(boxes) -> list:
        return np.multiply(boxes, factor).round().astype(int).tolist()

    lines = []
    for boxes in found.marks:
        line = {"text": "", "probability": 1.0, "unsure": len(boxes) > 0}
        lines.append(line | {"digits": [], "marks": scale(boxes)})
    values = found.lines, scale(found.boxes), probabilities.tolist()
    for number, box, p in zip(*values, strict=True):
        line, best = lines[number], max(p)
        digit = {"digit": p.index(best), "probability": best, "unsure": best < UNSURE}
        line["digits"].append(digit | {"probabilities": p, "box": box})
        line["text"] += str(digit["digit"])
        line["probability"] *= best
        line["unsure"] |= best < UNSURE
    p = math.prod(line["probability"] for line in lines)
    unsure = any(line["unsure"] for line in lines)
    return {"probability": p, "unsure": unsure, "lines": lines}


def read_pages(model: SimpleCNN, ink: nn.Module, picture) -> list[Page]:
    """Most pictures have one page; one without digits has an "error"."""
    name = str(picture) if isinstance(picture, (str, os.PathLike)) else ""
    pages = []
    for number, decoded in enumerate(decode_pages(picture), 1):
        page = {"file": name, "page": number}
        images = np.empty((0, 28, 28), np.uint8)
        try:
            if isinstance(decoded, str):
                raise Error(decoded)
            pixels, reduction = decoded
            found = find_digits(ink, pixels)
            images = found.images
            logits = classify(model, torch.from_numpy(images))
            votes = torch.from_numpy(found.votes)[:, None]
            page |= describe(found, reduction, votes * logits.softmax(1))
        except Error as error:
            page["error"] = str(error)
        pages.append((page, images))
    if number == 1:
        page["page"] = None
    return pages


def read_all(model: SimpleCNN, ink: nn.Module, pictures: Iterable) -> Iterator[Page]:
    """What `read_pages` returns, of a hundred pictures at once to limit memory."""
    pictures = iter(pictures)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(pictures, 100)):
            for pages in pool.map(read_pages, repeat(model), repeat(ink), batch):
                yield from pages


def read_picture(model: SimpleCNN, ink: nn.Module, picture) -> dict:
    """What a path, bytes, file, PIL image or array (h, w) or (h, w, 1, 3 or 4) says.

    "lines" has of each line of writing its "text", "probability", "digits" and the
    boxes of "marks" in it that are no digits; a digit has its "digit", "probability",
    ten "probabilities" and "box": x, y, width, height in pixels of the upright picture.
    The ten sum to how likely it is a digit at all. "unsure" is what is doubtful or has
    marks. Raises Error if there is nothing to read.
    """
    (answer, _), *more = read_pages(model, ink, picture)
    name = answer["file"] or type(picture).__name__
    if more:
        raise Error(f"{name}: {1 + len(more)} pages; read_all reads them")
    if "error" in answer:
        raise Error(f"{name}: {answer['error']}")
    return answer


def find_files(paths: list[str]) -> list[str]:
    """The files in `paths`, and of folders the pictures that are not hidden.

    A Mac's zip has a hidden ._1.jpg beside each 1.jpg.
    """
    register_heif_opener()
    suffixes = Image.registered_extensions()
    files, others = [], set()
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        for file in sorted(Path(path).rglob("*")):
            hidden = any(name[0] == "." for name in file.relative_to(path).parts)
            if hidden or not file.is_file():
                continue
            if file.suffix.lower() in suffixes:
                files.append(str(file))
            else:
                others.add(file.suffix or file.name)
    if others:
        print("note: passed over other files:", *sorted(others), file=sys.stderr)
    return files


def title(page: dict) -> str:
    return page["file"] + (f" page {page['page']}" if page["page"] else "")


# %% Own pictures for train.py
def write_mnist(ink: nn.Module, files: list[str], target: Path) -> None:
    """Write pictures in folders 0 to 9 in MNIST's layout, every fifth for tests.

    Prints what was left out, and how many were written. Raises Error.
    """
    if target.exists():
        raise Error(f"{target} exists; name a new folder")
    for folder in [Path(file).absolute().parent for file in files]:
        if folder.name not in [*"0123456789"]:
            raise Error(f"{folder}: pictures must lie in folders named 0 to 9")
    images, labels = [], []
    pages = read_all(SimpleCNN(), ink, files)  # what it reads is not used
    for page, digits in tqdm(pages, total=len(files), unit=" images", disable=None):
        if len(digits) == 1:
            images.append(digits[0])
            labels.append(int(Path(page["file"]).absolute().parent.name))
        else:
            reason = page.get("error", f"{len(digits)} digits")
            print(f"note: left out {title(page)}: {reason}", file=sys.stderr)
    if not images:
        raise Error("no picture of one digit in folders named 0 to 9")
    raw = target / "MNIST/raw"
    raw.mkdir(parents=True)
    is_test = np.arange(1, len(images) + 1) % 5 == 0
    for split, part in (("train", ~is_test), ("t10k", is_test)):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            values = np.uint8(values)[part]
            header = bytes([0, 0, 8, values.ndim])
            header += np.array(values.shape, ">i4").tobytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + values.tobytes())
    train, test = sum(~is_test), sum(is_test)
    print(f"{target}: {train} images to train, {test} (every fifth) to test")


# %% Command line
def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, home = parser.add_argument, os.path.expanduser
    add("images", nargs="+", type=home, help="files, folders, or - for stdin")
    add("--weights", default="data/mnist_cnn.pt", help="a file or a URL")
    add("--ink", default="data/ink.pt", help="the same, of the network that finds ink")
    plots = f"draw the first {SHOWN} into DIR/readings.png; needs matplotlib"
    add("--plots", type=home, metavar="DIR", help=plots)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", action="store_true", help="print a row for each line of writing")
    own = "write pictures in folders 0 to 9 to DIR, for train.py --also DIR"
    add("--to-mnist", type=home, metavar="DIR", help=own)
    return parser.parse_args(argv)


def report(pages: Iterable[Page], args: argparse.Namespace) -> int:
    """Print what each page says; return 1 if one could not be read, else 0."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        rows.writerow(["file", "page", "line", "text", "probability", "unsure"])
    kept, errors = [], []
    for page, images in pages:
        name = title(page)
        if "error" in page:
            errors.append(page)
            print(f"error: {name}: {page['error']}", file=sys.stderr)
            continue
        if args.json or len(kept) < SHOWN:
            kept.append((page, images))
        for number, line in enumerate(page["lines"], 1):
            text, p = line["text"], line["probability"]
            if args.csv:
                place = page["file"], page["page"], number
                rows.writerow([*place, text, f"{p:.6f}", line["unsure"]])
            elif not args.json:
                unsure = "   unsure" if line["unsure"] else ""
                print(f"{name:<17}  {text:<7} {100 * p:5.1f} %{unsure}", flush=True)
                name = ""
    if args.json:
        print(json.dumps({"images": [page for page, _ in kept], "errors": errors}))
    if args.plots and kept:
        plot(kept[:SHOWN], Path(args.plots, "readings.png"))
    return 1 if errors else 0


def plot(shown: list[Page], path: Path) -> None:
    """Draw each page with a box around each digit, and beside it what was seen."""
    from matplotlib.figure import Figure  # optional: ten packages that few runs need

    figure = Figure((9, 3 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), (page, images) in zip(axes, shown, strict=True):
        if page["file"] != "-":
            decoded = decode_pages(page["file"])
            *_, (pixels, reduction) = islice(decoded, page["page"] or 1)
            h, w = np.multiply(pixels.shape[:2], reduction)
            left.imshow(pixels, extent=(0, w, h, 0))
        left.set_title(title(page)[-40:], fontsize=8, parse_math=False)
        for line in page["lines"]:
            marks = [{"digit": "", "unsure": True, "box": box} for box in line["marks"]]
            for digit in line["digits"] + marks:
                x, y, w, h = digit["box"]
                colour = "red" if digit["unsure"] else "blue"
                around = [x, x + w, x + w, x, x], [y, y, y + h, y + h, y]
                left.plot(*around, colour, lw=0.7)
                left.text(x, y, digit["digit"], color=colour)
        padded = np.pad(images, ((0, -len(images) % 10), (0, 2), (0, 2)))
        rows = padded.reshape(-1, 10, 30, 30).swapaxes(1, 2)
        right.imshow(rows.reshape(-1, 300), cmap="gray")
        left.axis("off")
        right.axis("off")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    paths = []
    for path in args.images:  # a pattern if no shell has expanded it
        paths += [path] if os.path.exists(path) else sorted(glob(path)) or [path]
    files = find_files(paths)
    ink = load_weights(args.ink, InkNet, "data/make_ink.py")
    if args.to_mnist:
        write_mnist(ink, files, Path(args.to_mnist))
        return 0
    if args.plots:
        if not find_spec("matplotlib"):
            command = "uv run --with matplotlib read.py --plots DIR"
            raise Error(f"--plots needs matplotlib: {command}")
        os.makedirs(args.plots, exist_ok=True)
    if not files:
        raise Error(f"no images in {' '.join(paths)}")
    pages = read_all(load_weights(args.weights), ink, files)
    quiet = sys.stdout.isatty() or None
    bar = tqdm(pages, total=len(files), unit=" images", disable=quiet)
    return report(bar, args)


# %% Process
if AS_COMMAND:
    gc.freeze()  # saves 0.3 s at exit
    torch.set_num_threads(1)  # a core for each picture, not all for one
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # large pictures, odd metadata
    try:
        status = main()
        sys.stdout.flush()  # here, as it may fail
    except BrokenPipeError:  # of `| head`
        os._exit(1)  # without a word
    except KeyboardInterrupt:
        status = 130
    except (Error, OSError) as error:
        status = "error: " + " ".join(str(error).split())
    sys.exit(status)
