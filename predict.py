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

Photos are first made to look like MNIST: 98.5 % of simulated ones are read right, in 6 ms.
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
THRESHOLDS = 0.4, 0.65  # of the strongest ink: the first lets faint ink pass, the second no shadow


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
    device = model.fc1.weight.device
    return torch.cat([model(normalize(x.to(device))).cpu() for x in images.split(batch_size)])


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
# The constants were tuned on drawings of training digits (tests/handwriting.py). Pixels are those of the photo
# scaled to a longer side of 192 or, close up, 200.
def decode(image: Image.Image) -> np.ndarray:
    """Any picture to (h, w, 3) uint8, upright, at most 1600×1600. Raises Pillow's errors."""
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
    image.thumbnail((1600, 1600))
    return np.asarray(image.convert("RGB"))


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale the longer side to `side`."""
    scale = side / max(pixels.shape)
    size = [max(1, round(scale * length)) for length in pixels.shape[::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def find_surroundings(grey: np.ndarray) -> np.ndarray:
    """(h, w) uint8 mask of a frame or table around the page; all 0 if there is none. It covers most of the
    border, and what is left fills its rectangle; in a tightly cropped 0 that is 79 % (pi / 4)."""
    unlike = (cv2.absdiff(grey, np.full_like(grey, np.median(grey))) >= 64).astype(np.uint8)
    _, labels = cv2.connectedComponents(np.pad(unlike, 1, constant_values=1), connectivity=4)
    around = (labels[1:-1, 1:-1] == 1).astype(np.uint8)  # the padding joins all that touches the border
    page = cv2.findNonZero(1 - around)
    if border(unlike).mean() <= 0.8 or page is None:
        return np.zeros_like(grey)
    _, (w, h), _ = cv2.minAreaRect(page)
    return around * (len(page) > 0.88 * (w + 1) * (h + 1))


def is_light(grey: np.ndarray) -> bool:
    """Is the ink lighter than the paper? Ink is the rarer, so the skewness tells; the border is mostly paper."""
    detail = np.log(grey.astype(np.float32) + 8)  # uneven light becomes an offset, which the blur takes away
    detail -= cv2.blur(detail, (65, 65), borderType=cv2.BORDER_REPLICATE)
    detail /= detail.std() + 1e-6
    return cv2.pow(np.pad(detail, 24, "edge"), 3).mean() > 1.5 * border(detail).mean()


def measure_ink(grey: np.ndarray, light: bool, margin: int) -> tuple[np.ndarray, float]:
    """(h, w) float32 contrast of each pixel with its paper, 0 to 1; and the contrast of the strongest ink.
    Paper is the picture less all that is narrower than a third of it; a shadow is wider and stays part of it.
    Without a margin, light that fades at the border looks like ink; with one, strokes there look like paper."""
    h, w = grey.shape
    window = np.ones([max(h, w) // 3 | 1] * 2, np.uint8)  # of odd size
    paper = cv2.morphologyEx(np.pad(grey, margin, "edge"), cv2.MORPH_OPEN if light else cv2.MORPH_CLOSE, window)
    paper = paper[margin : margin + h, margin : margin + w]
    ink = cv2.absdiff(paper, grey) / cv2.max(paper, grey).clip(38).astype(np.float32)  # below 38 is noise
    return ink, max(0.1, cv2.blur(ink, (3, 3)).max())


def find_digit(ink: np.ndarray, peak: float, threshold: float, share: float) -> tuple[np.ndarray, float, bool]:
    """The (h, w) bool mask of the heaviest blob of ink and of those with a `share` of its mass, but not of other
    digits in its row; its part of all mass but theirs; are there any?"""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((ink > threshold * peak).astype(np.uint8))
    left, top, w, h, _ = stats.T
    right, bottom, (rows, columns) = left + w, top + h, ink.shape
    weight = np.maximum(ink - THRESHOLDS[1] * peak, 0)  # shadows weigh 0, so more blank pages fail
    mass = np.bincount(labels.ravel(), weight.ravel())
    mass[(w > 0.95 * columns) & (h < 0.12 * columns) | (h > 0.95 * rows) & (w < 0.12 * rows)] = 0  # ruled lines
    for i in mass.argsort()[-4:]:  # a frame or a form's box has other ink inside
        inside = (left > left[i]) & (top > top[i]) & (right < right[i]) & (bottom < bottom[i])
        mass[i] *= (mass[inside] <= 0.1 * mass[i]).all()
    i = mass.argmax()
    beside = (left > right[i]) | (right < left[i])
    same_row = np.minimum(bottom, bottom[i]) - np.maximum(top, top[i]) > 0.5 * h[i]
    others = beside & same_row & (mass > 0.1 * mass[i])
    part = mass[i] / (mass[~others].sum() + 1e-6)
    return ((mass >= share * mass[i]) & ~others)[labels], part, bool(others.any())


def is_ink(ink: np.ndarray, peak: float, threshold: float, mask: np.ndarray) -> bool:
    """Is the mask that of a digit, not of blank paper?"""
    holes = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    clear = (ink[mask] > (threshold + 0.1) * peak).mean()  # grain and shadows barely pass the threshold
    return peak > 0.11 and clear > 0.75 and (holes > 60).sum() < 9  # more holes: squared paper


def fit(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool to (28, 28) uint8: strokes 2 to 3.5 pixels wide and, as in MNIST (LeCun et al. 1998), the
    longer side 20 pixels and the centre of mass in the middle."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    unit = max(w, h) / 20
    digit = np.pad(mask[y : y + h, x : x + w], int(2 * unit) + 2).astype(np.uint8)  # room
    depth = cv2.distanceTransform(digit, cv2.DIST_L2, 5)
    width = (4 * depth[digit > 0].mean() - 1) / unit  # a pixel is about a quarter of the width deep, on average
    grow = max(unit * (np.clip(width, 2, 3.5) - width) / 2, -depth.max())
    digit = (cv2.distanceTransform(1 - digit, cv2.DIST_L2, 5) - depth <= grow).astype(np.uint8)  # signed distance
    x, y, w, h = cv2.boundingRect(digit)
    size = [max(1, round(20 * length / max(w, h))) for length in (w, h)]
    digit = cv2.resize(255 * digit[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    (h, w), m = digit.shape, cv2.moments(digit)
    left = min(max(round(13.5 - m["m10"] / m["m00"]), 0), 28 - w)
    top = min(max(round(13.5 - m["m01"] / m["m00"]), 0), 28 - h)
    return np.pad(digit, ((top, 28 - top - h), (left, 28 - left - w)))


def prepare(pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    """(h, w, 3) uint8 to (k, 28, 28) uint8, one digit light on black by k thresholds; are there several digits?
    Raises Error if there is none. A 28×28 image that is light on black stays as it is."""
    photo, deviation = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.meanStdDev(pixels)[1]
    if deviation.max() > 1.5 * cv2.meanStdDev(photo)[1].item():  # e.g. yellow ink, or red on blue
        photo = pixels[..., deviation.argmax()]
    if photo.shape == (28, 28) and border(photo).mean() < 64 and np.ptp(photo) >= 32:
        return photo[None], False
    small = resize(photo, 192)
    around = find_surroundings(small)
    if around.any():  # paint it like paper
        photo = np.where(cv2.resize(around, photo.shape[::-1]), np.uint8(np.median(small)), photo)
        small = resize(photo, 192)
    small = cv2.blur(small, (3, 3))
    light = is_light(small)
    far, far_peak = measure_ink(small, light, margin=32)
    found = []
    for threshold in THRESHOLDS:
        mask, far_part, several = find_digit(far, far_peak, threshold, share=1)
        x, y, w, h = max(photo.shape) / 192 * np.array(cv2.boundingRect(mask.astype(np.uint8)))
        room = max(w, h) / 2
        left, top = max(0, int(x - room)), max(0, int(y - room))
        near = photo[top : int(y + h + room) + 1, left : int(x + w + room) + 1]  # close up
        ink, peak = measure_ink(cv2.blur(resize(near, 200), (5, 5)), light, margin=10)
        mask, part, _ = find_digit(ink, peak, threshold, share=0.1)
        if min(far_part, part) > 0.4 and is_ink(ink, peak, threshold, mask):
            found.append((fit(mask), several))
    if not found:
        raise Error("no ink found")
    return np.stack([digit for digit, _ in found]), found[0][1]


# %% Images
def find_images(paths: list[str], passed_over: Counter) -> Iterator[str]:
    """The files in `paths` and the images in folders, in order of name; counts other files by suffix."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for path in paths:
        if not os.path.isdir(path):
            yield path
        for file in filter(Path.is_file, sorted(Path(path).rglob("*"))):
            if file.suffix.lower() in known:
                yield str(file)
            else:
                passed_over[file.suffix or file.name] += 1


def read_image(path: str) -> tuple[np.ndarray, bool, str | None]:
    """What `prepare` makes of a file, or of stdin for "-"; and what is wrong with it, if anything is."""
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path
        return *prepare(decode(Image.open(file))), None
    except UnidentifiedImageError:
        reason = "not an image, or a damaged one"
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return np.empty((0, 28, 28), np.uint8), False, reason


def read_images(model: SimpleCNN, paths: Iterator[str]) -> Iterator[tuple]:
    """For each image (path, None, (k, 28, 28) uint8 candidates, (10,) probabilities, several digits?), or
    (path, error). The probabilities are the mean over the candidates, which shows where they disagree: as often
    right as the surest alone, but half as often wrong at 99 %. Memory holds 100 images at a time."""
    cv2.setNumThreads(1)  # an image for each core, not several cores for an image
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # more threads than cores: a quarter slower
        while batch := list(islice(paths, 100)):
            candidates, several, errors = zip(*pool.map(read_image, batch))
            sizes = [len(digits) for digits in candidates]
            pixels = torch.from_numpy(np.concatenate(candidates))
            answers = zip(pixels.split(sizes), classify(model, pixels).softmax(1).split(sizes))
            for path, error, more, (digits, probabilities) in zip(batch, errors, several, answers):
                yield (path, error) if error else (path, None, digits, probabilities.mean(0), more)


# %% Command line
def report_images(model: SimpleCNN, args: argparse.Namespace) -> int:
    """Print each image's digit; return 1 if one could not be read, else 0."""
    from pi_heif import register_heif_opener  # here, because the test images do not need it
    register_heif_opener()
    warnings.filterwarnings("ignore", module="PIL")  # it reads large pictures and odd metadata anyway
    passed_over, entries, errors, shown, path = Counter(), [], [], [], None
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        rows.writerow(["file", "digit", "probability", *range(10)])
    images = read_images(model, find_images(args.images, passed_over))
    for path, error, *answer in tqdm(images, unit=" images", disable=sys.stdout.isatty() or None):
        if error:
            print(f"error: {path}: {error}", file=sys.stderr)
            errors.append(dict(file=path, error=error))
            continue
        digits, probabilities, several = answer
        if several:
            print(f"note: {path}: more than one digit? cut it up", file=sys.stderr)
        if args.plots and len(shown) < 25:
            shown.append((path, np.hstack(digits), probabilities))
        digit, p = int(probabilities.argmax()), probabilities.tolist()
        if args.json:
            entries.append(dict(file=path, digit=digit, probability=p[digit], several=several, probabilities=p))
        elif args.csv:
            rows.writerow([path, digit, *(f"{value:.6f}" for value in (p[digit], *p))])
        else:
            other = int(probabilities.argsort()[-2])
            also = f"   (also {other}: {100 * p[other]:.2f} %)" if p[other] >= 0.01 else ""
            print(f"{path:<17}  {digit}  {100 * p[digit]:6.2f} %{also}")
        sys.stdout.flush()  # lines appear as images are read
    if args.json:
        print(json.dumps(dict(images=entries, errors=errors)))
    if passed_over:
        print(f"note: passed over {passed_over.total()} other files:", *passed_over, file=sys.stderr)
    if shown:
        save_predictions(shown, args.plots / "predictions.png")
    if path is None:
        raise Error(f"no images in {' '.join(args.images)}")
    return 1 if errors else 0


def save_predictions(results: list[tuple], path: Path) -> None:
    """Draw a row for each (file, candidates side by side, probabilities): picture, candidates, probabilities."""
    from matplotlib.figure import Figure  # optional: ten packages that most runs do not need
    figure = Figure((7, 1.5 * len(results)), layout="constrained")
    for row, (file, seen, probabilities) in zip(figure.subplots(len(results), 3, squeeze=False), results):
        row[0].imshow(seen if file == "-" else decode(Image.open(file)), cmap="gray")
        row[0].set_title(os.path.basename(file)[-30:], fontsize=8, parse_math=False)
        row[1].imshow(seen, cmap="gray")
        row[2].bar(range(10), probabilities)
        row[2].set(xticks=range(10), ylim=(0, 1))
        row[0].axis("off")
        row[1].axis("off")
    figure.savefig(path)


def report_accuracy(model: SimpleCNN, args: argparse.Namespace) -> None:
    """Print the accuracy on the test images or, with --json, an object with all figures."""
    data_dir = find_data(args.data_dir)
    images, labels = load(data_dir, "test")
    logits, labels, total = classify(model, images), labels.long(), len(labels)
    confidence, digits = logits.softmax(1).max(1)
    correct = int((digits == labels).sum())
    if args.json:
        # Expected calibration error (Guo et al. 2017): the gap between confidence and accuracy in 15 bins.
        gaps = torch.bincount((15 * confidence).long().clamp(max=14), confidence - (digits == labels).float())
        confusion = torch.bincount(labels * 10 + digits, minlength=100).view(10, 10)  # a row for each true digit
        dataset = {MNIST_DIR: "mnist", SAMPLE_DIR: "sample"}.get(data_dir, str(data_dir))
        result = dict(accuracy=correct / total, correct=correct, total=total, dataset=dataset)
        result |= dict(loss=F.cross_entropy(logits, labels).item(), torch=torch.__version__)
        result |= dict(calibration_error=gaps.abs().sum().item() / total, confusion=confusion.tolist())
        print(json.dumps(vars(args) | result, default=str))
    else:
        source = {MNIST_DIR: "", SAMPLE_DIR: " of the sample"}.get(data_dir, f" of {data_dir}")
        print(f"Accuracy of SimpleCNN on the {total:,} test images{source}: {100 * correct / total:.2f} %")


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image, folder, or - for stdin; none: the test images")
    add("--weights", default="data/mnist_cnn.pt", help="state_dict: a file or a URL")
    add("--data-dir", type=Path, default=MNIST_DIR, help="folder of MNIST/raw")
    add("--plots", type=Path, help="folder for predictions.png of the first 25 IMAGEs; needs matplotlib")
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", action="store_true", help="print a line of CSV for each IMAGE")
    args = parser.parse_args(argv)
    if not args.images and (args.csv or args.plots) or args.csv and args.json:
        parser.error("--csv and --plots need an IMAGE; --csv and --json exclude each other")
    if args.plots:
        if not find_spec("matplotlib"):
            raise Error("--plots needs matplotlib: uv run --with matplotlib predict.py --plots DIR IMAGE")
        args.plots.mkdir(parents=True, exist_ok=True)
    report = report_images if args.images else report_accuracy
    return report(load_weights(args.weights), args)


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
