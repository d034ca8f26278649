#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["opencv-python-headless==5.0.0.93", "pi-heif==1.4.0", "pillow==13.0.0", "torch==2.15.0",
#                 "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Read handwritten digits with the weights that train.py made.

    uv run predict.py                     the accuracy on MNIST's 10,000 test images, in 2 seconds
    uv run predict.py photo.jpg scans/    your own pictures: files, folders, or - for one on stdin

Photos are first made to look like MNIST: of simulated ones it reads 98.6 %, in 8 ms each.
"""

import argparse
import csv
import gc
import gzip
import io
import json
import os
import socket
import sys
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # less idle spinning: twice as fast on a busy machine
gc.disable()  # no garbage collection while importing torch: 1.0 s instead of 1.5
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm
gc.enable()

MNIST_DIR, SAMPLE_DIR = Path("data/mnist"), Path("data/sample")


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
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # relu after pooling: the same, a quarter of the work
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32, by the mean and deviation of MNIST's training images."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


@torch.no_grad()
def classify(model: SimpleCNN, images: Tensor, batch_size: int = 100) -> Tensor:
    """(N, 28, 28) uint8 images to (N, 10) float32 logits on the CPU. Batches of 100 stay in a CPU's cache."""
    model.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    logits = torch.empty(len(images), 10)  # filled in place, so that the heap does not fragment
    for part, x in zip(logits.split(batch_size), images.split(batch_size)):
        part.copy_(model(normalize(x.to(model.fc1.weight.device))))
    return logits


# %% Data
def find_data(data_dir: Path) -> Path:
    """The folder to read: `data_dir`, downloaded if need be, or the sample if that fails for MNIST_DIR."""
    complete = any(data_dir.glob("MNIST/raw/t10k-labels-idx1-ubyte*"))  # the last file of a download
    if complete or (data_dir != MNIST_DIR and any(data_dir.glob("*"))):  # no download into a user's files
        return data_dir
    try:
        from torchvision.datasets import MNIST  # here, because it takes 0.8 s
        socket.setdefaulttimeout(10)
        MNIST(data_dir, download=True)
    except Exception as error:
        if data_dir != MNIST_DIR or not SAMPLE_DIR.is_dir():
            raise Error(f"cannot download MNIST into {data_dir}; copy it there ({error})") from None
        print(f"note: using {SAMPLE_DIR}; cannot download MNIST:", *str(error).split(), file=sys.stderr)
        return SAMPLE_DIR
    return data_dir


def load(data_dir: Path, split: str) -> tuple[Tensor, Tensor]:
    """(N, 28, 28) uint8 images and (N,) uint8 labels of "train" or "test"; raises Error on bad data."""
    prefix = data_dir / "MNIST/raw" / {"train": "train", "test": "t10k"}[split]
    paths = [Path(f"{prefix}-images-idx3-ubyte"), Path(f"{prefix}-labels-idx1-ubyte")]
    try:
        contents = [path.read_bytes() if path.exists() else gzip.open(f"{path}.gz").read() for path in paths]
        images, labels = (torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents)
        images, labels = images[16:].view(-1, 28, 28), labels[8:]  # after the headers of the IDX format
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{len(images)} images, {len(labels)} labels up to {labels.max()}")
    except Exception as error:
        raise Error(f"no 28×28 digits in {paths[0]} and {paths[1].name}, plain or .gz: {error}") from None
    return images, labels


def load_weights(source: str) -> SimpleCNN:
    """The network, in eval mode, with the state_dict in a file or at a URL; raises Error where none fits."""
    model = SimpleCNN()
    try:
        file = io.BytesIO(urllib.request.urlopen(source, timeout=10).read()) if "://" in source else source
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))  # runs no code
    except OSError as error:
        raise Error(f"no weights in {source} ({error}); `uv run train.py` makes them") from None
    except Exception as error:  # torch's own words for a file with code would advise to run it
        reason = "it is no plain state_dict" if "weights_only" in str(error) else error
        raise Error(f"{source} does not fit SimpleCNN in train.py, predict.py and draw.py: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise Error(f"the weights in {source} are not finite; train again, with a smaller --lr")
    return model.eval()


# %% Handwriting: a photo in the form of MNIST
def flatten(image: Image.Image) -> np.ndarray:
    """Any picture to (h, w) or (h, w, 3) uint8, upright, at most 1600×1600. Raises what Pillow does."""
    image.draft("RGB", (1600, 1600))  # decodes a large JPEG at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32 bits, of whatever range
        values = np.nan_to_num(np.asarray(image.convert("F"), np.float64), posinf=0, neginf=0)
        image = Image.fromarray(cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        if image.convert("L").getextrema()[0] > 240:  # white ink shows on black only
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.thumbnail((1600, 1600))
    return np.asarray(image)


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(pixels.shape[:2])
    size = [max(1, round(scale * length)) for length in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def find_surroundings(grey: np.ndarray) -> np.ndarray:
    """(h, w) uint8: a frame or table around the page. It covers most of the border and leaves a rectangle."""
    far = (cv2.absdiff(grey, np.full_like(grey, np.median(grey))) >= 64).astype(np.uint8)
    around = cv2.copyMakeBorder(far, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(around, None, (0, 0), 2)
    around = (around[1:-1, 1:-1] == 2).astype(np.uint8)
    page = cv2.findNonZero(1 - around)
    if border(far).mean() <= 0.8 or page is None:
        return np.zeros_like(grey)
    _, (w, h), _ = cv2.minAreaRect(page)  # a cropped thick 0 leaves an ellipse: 0.79 of it
    return cv2.dilate(around, np.ones((5, 5), np.uint8)) * (len(page) > 0.88 * (w + 1) * (h + 1))


def is_light(grey: np.ndarray) -> bool:
    """Is the ink lighter than the paper? Ink, the rarer of both, skews the grey; the border is mostly paper."""
    detail = np.log(resize(grey, 128).astype(np.float32) + 8)  # in which uneven light is only an offset
    detail -= cv2.blur(detail, (43, 43), borderType=cv2.BORDER_REPLICATE)
    detail /= cv2.meanStdDev(detail)[1].item() + 1e-6
    page = cv2.copyMakeBorder(detail, 16, 16, 16, 16, cv2.BORDER_REPLICATE)
    return cv2.pow(page, 3).mean() > 1.5 * border(detail).mean()


def measure_ink(grey: np.ndarray, light: bool, margin: int) -> np.ndarray:
    """(h, w) float32: each pixel's contrast with its paper, 0 to 1.

    The paper is the picture without what is narrower than a third of it; so it follows the edge of a shadow.
    Without a margin, light that fades at the border looks like ink; with one, strokes there look like paper.
    """
    window = np.ones((max(grey.shape) // 3 | 1,) * 2, np.uint8)
    page = cv2.copyMakeBorder(grey, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    paper = cv2.morphologyEx(page, cv2.MORPH_OPEN if light else cv2.MORPH_CLOSE, window)
    paper = paper[margin : margin + len(grey), margin : margin + len(grey[0])]
    return cv2.absdiff(paper, grey) / np.maximum(cv2.max(paper, grey), np.float32(38))  # darker is noise


def find_thresholds(ink: np.ndarray) -> tuple[float, list[float]]:
    """The darkest ink; two thresholds: Otsu's but at least 0.4 of it, and 0.7, which parts ink from shadow."""
    peak = max(0.1, np.partition(ink, -min(20, ink.size), axis=None)[-20:].mean())
    otsu, _ = cv2.threshold((255 * ink).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    return peak, [max(otsu / 255, 0.4 * peak), 0.7 * peak]


def find_blobs(mask: np.ndarray, ink: np.ndarray) -> tuple:
    """(h, w) labels of connected pixels; left, top, right, bottom and ink of each blob."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, w, h, _ = stats.T
    inked = np.flatnonzero(ink)
    mass = np.bincount(labels.ravel()[inked], ink.ravel()[inked], count)
    return labels, left, top, left + w, top + h, mass


def find_digit(ink: np.ndarray, weight: np.ndarray, threshold: float, share: float) -> tuple:
    """The (h, w) bool mask of the blob with most weight and of those with a `share` of that; its part of all
    weight; are there several digits in a row?"""
    mask, weight = (ink > threshold).astype(np.uint8), np.maximum(weight, 0)
    labels, left, top, right, bottom, mass = find_blobs(mask, weight)
    w, h, (rows, columns) = right - left, bottom - top, ink.shape
    mass[(w > 0.95 * columns) & (h < 0.12 * columns) & (h < 0.4 * rows)] = 0  # ruled lines
    mass[(h > 0.95 * rows) & (w < 0.12 * rows) & (w < 0.4 * columns)] = 0
    for i in mass.argsort()[-16:]:  # a frame or a form's box has other ink inside
        inside = (left > left[i]) & (top > top[i]) & (right < right[i]) & (bottom < bottom[i])
        mass[i] *= not (mass[inside] > 0.1 * mass[i]).any()
    mask *= (mass > 0)[labels]
    joined = cv2.dilate(mask, np.ones((11, 11), np.uint8))  # pieces of a digit
    labels, left, top, right, bottom, mass = find_blobs(joined, weight * mask)
    i, h = mass.argmax(), bottom - top
    beside = (left > right[i]) | (right < left[i])
    same_row = np.minimum(bottom, bottom[i]) - np.maximum(top, top[i]) > 0.5 * h[i]
    as_high = np.minimum(h, h[i]) > 0.6 * np.maximum(h, h[i])
    several = beside & same_row & as_high & (mass > 0.1 * mass[i])
    return (mass >= share * mass[i])[labels] & (mask > 0), mass[i] / max(mass.sum(), 1e-6), several.any()


def is_ink(ink: np.ndarray, weight: np.ndarray, mask: np.ndarray, threshold: float, peak: float) -> bool:
    """Is the mask that of a digit? Grain and light cross the threshold slowly, or all over the paper."""
    _, _, w, h = cv2.boundingRect(mask.astype(np.uint8))
    cells = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    if peak < 0.11 or w >= 5 * h or (cells > 100).sum() > 9:  # nothing, a line, squared paper
        return False
    rest = weight[~mask] if len(cells) else np.zeros(1)
    paper = np.median(rest)
    contrast = (np.median(ink[mask]) - paper) / (np.abs(rest - paper).mean() + 1e-3)
    clear = (ink[mask] > threshold + 0.1 * peak).mean()
    return contrast > 4 and clear > 0.75


def fit(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool to (28, 28) uint8: strokes 2 to 3.5 pixels wide and, as in MNIST (LeCun et al. 1998), the
    longer side 20 pixels and the centre of mass in the middle."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    unit = max(w, h) / 20
    digit = np.pad(mask[y : y + h, x : x + w], int(2 * unit) + 2).astype(np.uint8)
    depth = cv2.distanceTransform(digit, cv2.DIST_L2, 5)
    width = (4 * depth[digit > 0].mean() - 1) / unit  # the mean pixel is a quarter of the width deep
    grow = max(unit * (np.clip(width, 2, 3.5) - width) / 2, -depth.max())
    digit = (cv2.distanceTransform(1 - digit, cv2.DIST_L2, 5) - depth <= grow).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(digit)
    size = [max(1, round(20 * length / max(w, h))) for length in (w, h)]
    digit = cv2.resize(255 * digit[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    moments = cv2.moments(digit)
    left, top = (min(max(round(13.5 - moments[m] / moments["m00"]), 0), 28 - length)
                 for m, length in zip(("m10", "m01"), size))  # fmt: skip
    return np.pad(digit, ((top, 28 - top - size[1]), (left, 28 - left - size[0])))


def prepare(photo: np.ndarray) -> tuple[np.ndarray, bool]:
    """`flatten`'s picture to (k, 28, 28) uint8, the digit light on black at k thresholds; are there several?

    A grey 28×28 image that is light on black stays as it is. Raises Error for a blank picture."""
    if photo.shape == (28, 28) and border(photo).mean() < 64 and np.ptp(photo) >= 32:
        return photo[None], False
    small = resize(photo, 192)
    around = find_surroundings(small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    if around.any():
        photo, paper = photo.copy(), np.median(small.reshape(-1, *small.shape[2:]), axis=0)
        photo[cv2.resize(around, photo.shape[1::-1]) > 0] = paper
        small = resize(photo, 192)
    if photo.ndim == 3:
        channel = cv2.meanStdDev(small)[1].argmax()  # the one in which the ink shows most
        photo, small = photo[..., channel], small[..., channel]
    small, scale = cv2.blur(small, (3, 3)), max(photo.shape) / 192
    light = is_light(small)
    far = measure_ink(small, light, margin=32)
    _, thresholds = find_thresholds(far)
    candidates = []
    for k in range(2):
        # Only ink above the higher threshold has weight: that refuses more blank pages.
        mask, far_part, several = find_digit(far, far - thresholds[1], thresholds[k], share=1)
        x, y, w, h = scale * np.array(cv2.boundingRect(mask.astype(np.uint8)))
        margin = 0.5 * max(w, h)
        rows, columns = (slice(max(0, int(start - margin)), int(start + length + margin) + 1)
                         for start, length in ((y, h), (x, w)))  # fmt: skip
        near = cv2.blur(resize(photo[rows, columns], 200), (5, 5))
        ink, weight = (measure_ink(near, light, margin) for margin in (0, 33))
        peak, near_thresholds = find_thresholds(ink)  # now close up
        mask, part, _ = find_digit(ink, weight - near_thresholds[1], near_thresholds[k], share=0.1)
        if min(far_part + 0.25 * several, part) > 0.4 and is_ink(ink, weight, mask, near_thresholds[k], peak):
            candidates.append((fit(mask), several))
    if not candidates:
        raise Error("no ink found")
    return np.stack([digit for digit, _ in candidates]), bool(candidates[0][1])


# %% Images
def find_images(paths: list[str], passed_over: Counter) -> Iterator[str]:
    """The files in `paths` and the images in folders, in order of name; counts other files by suffix."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for path in paths:
        if not os.path.isdir(path):
            yield path
        for file in sorted(Path(path).rglob("*")):
            if file.suffix.lower() in known:
                yield str(file)
            elif file.is_file():
                passed_over[file.suffix or file.name] += 1


def read_image(path: str) -> tuple[np.ndarray, bool] | Error:
    """What `prepare` makes of a file, or of stdin for "-"; or an Error that says why it cannot."""
    try:
        return prepare(flatten(Image.open(io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path)))
    except UnidentifiedImageError:
        return Error("not an image, or a damaged one")
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        return Error(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def read_images(model: SimpleCNN, paths: Iterator[str]) -> Iterator[tuple]:
    """For each image (path, (28, 28) uint8 pixels, (10,) probabilities, several digits?), or (path, Error).

    The candidate the network is surest of counts: that reads 98.9 % of drawn held-out digits, the first alone
    97.9 %, the mean of all 98.8 %. Memory holds 100 images, however many there are.
    """
    cv2.setNumThreads(1)  # an image for each core, not several cores for an image
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # more threads than cores: a quarter slower
        while batch := list(islice(paths, 100)):
            readings = list(pool.map(read_image, batch))
            candidates = [reading[0] for reading in readings if not isinstance(reading, Error)]
            pixels = torch.from_numpy(np.concatenate([np.empty((0, 28, 28), np.uint8), *candidates]))
            results = zip(pixels, classify(model, pixels).softmax(1))
            for path, reading in zip(batch, readings):
                if isinstance(reading, Error):
                    yield path, reading
                else:
                    best = max(islice(results, len(reading[0])), key=lambda result: result[1].max())
                    yield path, *best, reading[1]


# %% Command line
def report_images(model: SimpleCNN, args: argparse.Namespace) -> int:
    """Print each image's digit; return the exit status, 1 if one of them could not be read."""
    from pi_heif import register_heif_opener  # here, because the test images do not need it
    register_heif_opener()
    warnings.filterwarnings("ignore", module="PIL")  # it reads large pictures and odd metadata all the same
    passed_over, entries, errors, shown, path = Counter(), [], [], [], None
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        rows.writerow(["file", "digit", "probability", *range(10)])
    images = read_images(model, find_images(args.images, passed_over))
    for path, *result in tqdm(images, unit=" images", disable=sys.stdout.isatty() or None):
        if isinstance(result[0], Error):
            print(f"error: {path}: {result[0]}", file=sys.stderr)
            errors.append(dict(file=path, error=str(result[0])))
            continue
        pixels, probabilities, several = result
        if several:
            print(f"note: {path}: more than one digit? cut it up", file=sys.stderr)
        if args.plots and len(shown) < 25:
            shown.append((path, pixels, probabilities))
        (p, q), (digit, other) = (values.tolist() for values in probabilities.topk(2))
        if args.json:
            entry = dict(file=path, digit=digit, probability=p, several=several)
            entries.append(entry | dict(probabilities=probabilities.tolist()))
        elif args.csv:
            rows.writerow([path, digit, *(f"{value:.6f}" for value in (p, *probabilities.tolist()))])
        else:
            also = f"   (also {other}: {100 * q:.2f} %)" if q >= 0.01 else ""
            print(f"{path:<17}  {digit}  {100 * p:6.2f} %{also}")
        sys.stdout.flush()  # lines appear as images are read
    if args.json:
        print(json.dumps(dict(images=entries, errors=errors)))
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.items())
        print(f"note: passed over {passed_over.total()} other files: {kinds}", file=sys.stderr)
    if shown:
        save_predictions(shown, args.plots / "predictions.png")
    if path is None:
        raise Error(f"no images in {' '.join(args.images)}")
    return 1 if errors else 0


def save_predictions(results: list[tuple], path: Path) -> None:
    """Draw a row for each (file, 28×28 pixels, probabilities): picture, what the network saw, its answer."""
    from matplotlib.figure import Figure  # optional: ten packages that most runs do not need
    figure = Figure((7, 1.5 * len(results)), layout="constrained")
    for row, (file, pixels, probabilities) in zip(figure.subplots(len(results), 3, squeeze=False), results):
        row[0].imshow(pixels if file == "-" else flatten(Image.open(file)), cmap="gray")
        row[0].set_title(os.path.basename(file)[-30:], fontsize=8, parse_math=False)
        row[1].imshow(pixels, cmap="gray")
        row[2].bar(range(10), probabilities)
        row[2].set(xticks=range(10), ylim=(0, 1))
        for axis in row[:2]:
            axis.axis("off")
    figure.savefig(path)


def report_accuracy(model: SimpleCNN, args: argparse.Namespace) -> None:
    """Print the accuracy on the test images as the last line or, with --json, an object with all figures."""
    data_dir = find_data(args.data_dir)
    images, labels = load(data_dir, "test")
    if not args.json:
        print(model, flush=True)
    logits, labels, total = classify(model, images), labels.long(), len(labels)
    confidence, digits = logits.softmax(1).max(1)
    confusion = torch.bincount(labels * 10 + digits, minlength=100).view(10, 10)
    correct = int(confusion.trace())
    dataset = {MNIST_DIR: "mnist", SAMPLE_DIR: "sample"}.get(data_dir, str(data_dir))
    source = {MNIST_DIR: "", SAMPLE_DIR: " of the sample"}.get(data_dir, f" of {data_dir}")
    if args.json:
        # Expected calibration error (Guo et al. 2017): the gap between confidence and accuracy in 15 bins.
        bins = (15 * confidence).long().clamp(max=14)
        gaps = torch.zeros(15).index_add(0, bins, confidence - (digits == labels).float())
        result = dict(accuracy=correct / total, correct=correct, total=total, dataset=dataset)
        result |= dict(calibration_error=gaps.abs().sum().item() / total, confusion=confusion.tolist())
        result |= dict(loss=F.cross_entropy(logits, labels).item(), torch=torch.__version__)
        print(json.dumps(vars(args) | result, default=str))
        return
    if args.report:
        print("true  accuracy  predicted as", *(f"{digit:5}" for digit in range(10)))
        for digit, row in enumerate(confusion.tolist()):
            accuracy = 100 * row[digit] / max(1, sum(row))
            print(f"{digit:4}  {accuracy:6.2f} %              ", *(f"{count:5}" for count in row))
    print(f"Accuracy of SimpleCNN on the {total:,} test images{source}: {100 * correct / total:.2f} %")


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image, folder, or - for stdin; none: the test images")
    add("--weights", default="data/mnist_cnn.pt", help="state_dict: a file or a URL")
    add("--data-dir", type=Path, default=MNIST_DIR, help="folder of MNIST/raw")
    add("--report", action="store_true", help="print the accuracy of each digit, and what it is taken for")
    add("--plots", type=Path, help="folder for predictions.png of the first 25 IMAGEs; needs matplotlib")
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", action="store_true", help="print a line of CSV for each IMAGE")
    args = parser.parse_args(argv)
    if args.images and args.report or not args.images and (args.csv or args.plots) or args.csv and args.json:
        parser.error("--csv or --json; --csv and --plots are for IMAGEs, --report for the test images")
    if args.plots:
        if not find_spec("matplotlib"):
            raise Error("--plots needs matplotlib: uv run --with matplotlib predict.py --plots DIR IMAGE")
        args.plots.mkdir(parents=True, exist_ok=True)
    model = load_weights(args.weights)
    return report_images(model, args) if args.images else report_accuracy(model, args)


if __name__ == "__main__":
    gc.freeze()  # no garbage collection at exit: saves 0.4 s
    try:
        status = main([] if "ipykernel" in sys.modules else None)  # in a notebook, sys.argv is the kernel's
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
