#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0", "torch==2.15.0", "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% What it is
"""Read handwritten digits with the weights that train.py made.

    uv run predict.py                          the accuracy on MNIST's test images
    uv run predict.py seven.png digits/        your own images: files, folders, or - for one on stdin
    uv run predict.py --help                   all options

Results go to stdout, progress and errors to stderr. The accuracy needs MNIST (see train.py); images need the weights alone.
"""

import signal
import sys

NOTEBOOK = "ipykernel" in sys.modules


def stop(signum, frame):
    """End on Ctrl-C or SIGTERM with one line and the shell's status for it; SystemExit lets temporary files be removed."""
    print(f"\nerror: stopped by {signal.Signals(signum).name}", file=sys.stderr)
    sys.exit(128 + signum)


if __name__ == "__main__" and not NOTEBOOK:  # this early, because the imports below take seconds
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot show
    sys.stderr.reconfigure(errors="backslashreplace")

# %% Imports and constants
import argparse
import csv
import functools
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import platform
import secrets
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = {  # MD5 of the test images and labels: nothing else passes for MNIST
    "a9c5e64a683c5dd2f6a9bf7c61b53e6f": "mnist",
    "bdce57e1a50d2d93e7338d5b62aea740": "sample",
}
SAMPLE = Path("data/sample")


UNREADABLE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)  # of torch.load


class Error(Exception):
    """Something that the user can put right; `main` prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers, 225,034 parameters: (N, 1, 28, 28) float32 to (N, 10) logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(1600, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # pooling first leaves relu a quarter of the work, and is the same function
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32 by the mean and deviation of MNIST's training images."""
    x = (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    return x.contiguous(memory_format=torch.channels_last)  # a CPU takes half the time in this layout


@torch.no_grad()
def classify(model: SimpleCNN, images: Tensor, batch_size: int = 500) -> Tensor:
    """The (N, 10) float32 logits, on the CPU, of (N, 28, 28) uint8 images."""
    model.to(memory_format=torch.channels_last)
    return torch.cat([model(normalize(x.to(model.fc1.weight.device))).cpu() for x in images.split(batch_size)])


# %% Data
def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes with `ndim` dimensions (format: the home page of MNIST, LeCun, Cortes and Burges).

    Returns uint8 of the shape that the header gives; raises Error where the file is not just that.
    """
    data = bytearray(path.read_bytes())
    header = 4 + 4 * ndim
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) != header + math.prod(shape) or len(data) <= header:
        raise Error(f"{path} is damaged or no IDX file; delete it and run again to download it")
    return torch.frombuffer(data, dtype=torch.uint8, offset=header).view(shape)


def load(data_dir: Path, split: str) -> tuple[Tensor, Tensor]:
    """Split "train" or "test" as (N, 28, 28) uint8 images and (N,) uint8 labels 0..9; raises Error where they are not that."""
    (images_path, labels_path) = (data_dir / "MNIST/raw" / name for name in FILES[split])
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape != (len(labels), 28, 28) or labels.max() > 9:
        raise Error(f"{images_path} and {labels_path.name} are not 28×28 images with a digit each; delete both and run again")
    return images, labels


def download(data_dir: Path, splits: list[str]) -> None:
    """Fetch what is missing in `data_dir` of `splits`, whole; raises Error, with nothing written, where a file does not come."""
    raw = data_dir / "MNIST/raw"
    missing = [name for split in splits for name in FILES[split] if not (raw / name).exists()]
    if not missing:
        return
    from torchvision.datasets import MNIST  # its mirrors and MD5 sums; importing it takes 2 to 4 s, so only where needed

    md5 = dict(MNIST.resources)
    files = {name: fetch([mirror + name + ".gz" for mirror in MNIST.mirrors], md5[name + ".gz"]) for name in missing}
    for name, data in files.items():
        write(raw / name, gzip.decompress(data))


def fetch(urls: list[str], md5: str) -> bytes:
    """The content of the first of `urls` that answers with that MD5; raises Error where none does."""
    reasons = []
    for url in urls:
        buffer = io.BytesIO()
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                bar = tqdm(desc=url, total=response.length, unit="B", unit_scale=True, leave=False, disable=None)
                while chunk := response.read(1 << 16):
                    bar.update(buffer.write(chunk))
                bar.close()
            if hashlib.md5(buffer.getvalue()).hexdigest() == md5:
                return buffer.getvalue()
            reasons.append(f"{url}: wrong MD5")
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {error}")
    raise Error("; ".join(reasons))


def write(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: a new file beside it takes its place at the end."""
    path = path.resolve()  # so that a link stays a link
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def choose_data(data_dir: Path | None, splits: list[str]) -> Path:
    """The folder to read: `data_dir`, by default data/mnist, after a download where it has no data; else, unless named, SAMPLE."""
    try:
        download(data_dir or Path("data/mnist"), splits)
    except Error as error:
        if data_dir or not SAMPLE.is_dir():
            raise Error(f"no MNIST in {data_dir or 'data/mnist'}, and no mirror gives it ({error}); copy it there") from None
        print(f"no mirror gives MNIST ({error}); using the sample in {SAMPLE}", file=sys.stderr)
        return SAMPLE
    return data_dir or Path("data/mnist")


def dataset_name(images: Tensor, labels: Tensor, data_dir: Path) -> str:
    """ "mnist" or "sample" where the test images and labels are just those, else the folder that they came from."""
    return NAMES.get(hashlib.md5(bytes(images.numpy()) + bytes(labels.numpy())).hexdigest(), str(data_dir))


# %% Weights
def load_weights(source: str) -> SimpleCNN:
    """Read a state_dict from a file, or from a URL by way of torch.hub's cache; raises Error where it is not SimpleCNN's."""
    try:
        if source.startswith(("https://", "http://")):
            name = f"{hashlib.sha256(source.encode()).hexdigest()}.pt"  # many a URL ends in the same file name
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", progress=False, file_name=name, weights_only=True)
        else:
            state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Error(f"no weights in {source}; `uv run train.py` makes them") from None
    except OSError as error:
        raise Error(f"cannot read the weights {source} ({error})") from None
    except UNREADABLE:
        raise Error(f"{source} is not a whole state_dict from torch.save; `uv run train.py` makes one") from None
    model = SimpleCNN()
    wanted = model.state_dict()
    if not isinstance(state, dict):
        raise Error(f"{source} holds a {type(state).__name__}; save the state_dict of the model instead")
    for name in [*wanted, *state]:
        if name not in state or name not in wanted:
            raise Error(f"{source} is of another network: {name} is {'missing' if name in wanted else 'not in SimpleCNN'}")
        kind, kind_wanted = ((tuple(t.shape), t.dtype) if isinstance(t, Tensor) else type(t) for t in (state[name], wanted[name]))
        if kind != kind_wanted:
            raise Error(f"{source} is of another network: {name} is {kind}, not {kind_wanted}")
        if not state[name].isfinite().all():
            raise Error(f"{source} is spoilt: {name} has a NaN or an infinity in it; train again")
    model.load_state_dict(state)
    return model


# %% Images
def find_images(paths: list[str]) -> Iterator[str]:
    """The files among `paths` and, in order of name, the images in the folders among them, by the suffixes that Pillow knows."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for name in sorted(os.listdir(path)):
            below = os.path.join(path, name)
            if os.path.isdir(below) and not os.path.islink(below):  # a link may lead back up
                yield from find_images([below])
            elif os.path.splitext(name)[1].lower() in Image.registered_extensions():
                yield below


@functools.cache
def stdin() -> bytes:
    return sys.stdin.buffer.read()


def open_image(path: str) -> Image.Image:
    """The image in a file, or in stdin for "-"; raises Error where there is none, or one of more than 89 million pixels."""
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return Image.open(io.BytesIO(stdin()) if path == "-" else path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Error(str(error)) from None


def prepare(image: Image.Image) -> Tensor:
    """placeholder"""
    image = image.convert("L").resize((28, 28))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(28, 28)


def read_images(model: SimpleCNN, paths: list[str], batch_size: int) -> Iterator[tuple[str, Tensor | Error, Tensor | None]]:
    """For each image its path, the (28, 28) uint8 that the network sees, and its (10,) probabilities; or the path and an Error.

    Holds `batch_size` prepared images at a time, however many there are.
    """
    paths = find_images(paths)
    while batch := list(islice(paths, batch_size)):
        seen = []
        for path in batch:
            try:
                seen.append(prepare(open_image(path)))
            except Error as error:
                seen.append(error)
        pixels = [image for image in seen if isinstance(image, Tensor)]
        probabilities = iter(classify(model, torch.stack(pixels)).softmax(1) if pixels else [])
        yield from ((path, s, next(probabilities) if isinstance(s, Tensor) else None) for path, s in zip(batch, seen))


# %% Pictures
def confusion_matrix(digits: Tensor, labels: Tensor) -> Tensor:
    """(10, 10) counts: row the true digit, column the predicted one."""
    return torch.bincount(labels.long() * 10 + digits, minlength=100).view(10, 10)


def draw_accuracy(images: Tensor, labels: Tensor, logits: Tensor) -> dict[str, bytes]:
    """PNGs of the confusion matrix and of up to 50 misread images, the most confident first."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    confidence, digits = logits.softmax(1).max(1)
    counts = confusion_matrix(digits, labels)
    matrix = Figure((6, 5.5), layout="constrained")
    axis = matrix.subplots()
    axis.imshow(counts.clamp(min=0.5), norm=LogNorm(0.5, int(counts.max())), cmap="Blues")
    for true, predicted in counts.nonzero().tolist():
        count = int(counts[true, predicted])
        axis.text(predicted, true, count, ha="center", va="center", fontsize=8, color="white" if count > 30 else "black")
    axis.set(xticks=range(10), yticks=range(10), xlabel="predicted digit", ylabel="true digit")
    wrong = (digits != labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)][:50].tolist()
    errors = Figure((10, 1.3 * math.ceil(len(wrong) / 10) + 0.4), layout="constrained")
    errors.suptitle(f"{len(wrong)} of {int((digits != labels).sum())} misread images: true → predicted, probability", fontsize=10)
    for axis, i in zip(errors.subplots(max(1, math.ceil(len(wrong) / 10)), 10, squeeze=False).flat, wrong + [None] * 10):
        axis.axis("off")
        if i is not None:
            axis.imshow(images[i], cmap="gray")
            axis.set_title(f"{labels[i]} → {digits[i]}  {confidence[i]:.0%}", fontsize=8)
    return {"confusion.png": png(matrix), "errors.png": png(errors)}


def draw_predictions(results: list[tuple[str, Tensor, Tensor]]) -> dict[str, bytes]:
    """A PNG with a row for each image: the input, the 28×28 that the network saw, and a bar for each probability."""
    from matplotlib.figure import Figure

    figure = Figure((7, 1.5 * len(results) + 0.3), layout="constrained")
    for row, (path, pixels, probabilities) in zip(figure.subplots(len(results), 3, squeeze=False), results):
        row[0].imshow(ImageOps.exif_transpose(open_image(path)).convert("RGB"))
        row[0].set_title(os.path.basename(printable(path))[-30:], fontsize=8)
        row[1].imshow(pixels, cmap="gray", vmin=0, vmax=255)
        row[2].bar(range(10), probabilities)
        row[2].set(xticks=range(10), ylim=(0, 1))
        for axis in row[:2]:
            axis.axis("off")
    return {"predictions.png": png(figure)}


def png(figure) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


# %% Command line
def report(logits: Tensor, labels: Tensor, dataset: str, args: argparse.Namespace, **more) -> None:
    """Print the accuracy as the last line or, with --json, as an object with all there is to say."""
    correct, total = int((logits.argmax(1) == labels).sum()), len(labels)
    if args.json:
        result = {"accuracy": correct / total, "correct": correct, "total": total, "dataset": dataset}
        result |= {"loss": F.cross_entropy(logits, labels.long()).item(), "weights": str(args.weights), **more}
        result |= {"python": platform.python_version(), "torch": version("torch"), "torchvision": version("torchvision")}
        print(json.dumps(result))
    else:
        source = {"mnist": "", "sample": " of the sample"}.get(dataset, f" of {dataset}")
        print(f"Accuracy of SimpleCNN on the {total:,} test images{source}: {100 * correct / total:.2f} %")


def digit_report(digits: Tensor, labels: Tensor) -> str:
    """A table of the accuracy for each digit, and the five commonest confusions."""
    counts = confusion_matrix(digits, labels)
    lines = ["digit  images  correct  accuracy"]
    for digit, row in enumerate(counts.tolist()):
        lines.append(f"{digit:5}  {sum(row):6}  {row[digit]:7}  {100 * row[digit] / max(1, sum(row)):6.2f} %")
    values, places = counts.fill_diagonal_(0).flatten().topk(5)
    lines += ["", "true  predicted  times"]
    lines += [f"{place // 10:4}  {place % 10:9}  {value:5}" for value, place in zip(values.tolist(), places.tolist()) if value]
    return "\n".join(lines)


def number(kind: type, least: float, most: float):
    """An argparse type: a `kind` from `least` to `most`."""

    def convert(text: str):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return kind(text)

    convert.__name__ = kind.__name__  # argparse names the type by it
    return convert


def choose_device(name: str) -> torch.device:
    """The device `name`, for "auto" the accelerator or else the CPU; raises Error where it is not there."""
    here = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name not in ("auto", "cpu", here.type):
        raise Error(f"no {name} device here; run with --device {here.type}")
    return here if name == "auto" else torch.device(name)


def check_writable(path: Path, option: str) -> None:
    """Raise Error where no file `path` can be written; makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise Error(f"cannot write {path} ({error}); name another place with {option}") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Read handwritten digits with the weights that train.py made.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="an image, a folder of images, or - for one on stdin (default: MNIST's test images)")
    add("--weights", metavar="FILE", default="data/mnist_cnn.pt", help="state_dict to read, a file or a URL (default: %(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="MNIST in torchvision's layout, DIR/MNIST/raw (default: data/mnist)")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="auto takes the accelerator that is there (default: %(default)s)")
    add("--batch-size", type=number(int, 1, 60_000), metavar="N", default=500, help="images at a time (default: %(default)s)")
    add("--probabilities", action="store_true", help="print all ten for each IMAGE (default: off)")
    add("--report", action="store_true", help="print the accuracy for each digit and the commonest confusions (default: off)")
    add("--plots", type=Path, metavar="DIR", help="draw confusion.png and errors.png there, or predictions.png of the first 25"
        " IMAGEs, with matplotlib (default: off)")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else (default: off)")
    form.add_argument("--csv", action="store_true", help="print a line of CSV for each IMAGE (default: off)")
    args = parser.parse_args(argv)
    if args.images and args.report or not args.images and (args.csv or args.probabilities):
        parser.error("--report is for the test images; --csv and --probabilities are for IMAGEs")
    return args


def printable(path: str) -> str:
    return path if path.isprintable() else repr(path)


def run_images(model: SimpleCNN, args: argparse.Namespace) -> int:
    """Print what each image says; returns the exit status, 1 where one of them could not be read."""
    first, errors, rows = [], [], csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        rows.writerow(["file", "digit", "probability", *range(10)])
    if args.json:
        print('{"images": [', end="")
    between = ""
    # Where the results go to a terminal, they are the progress.
    results = tqdm(read_images(model, args.images, args.batch_size), unit=" images", disable=sys.stdout.isatty() or None)
    for path, pixels, probabilities in results:
        if probabilities is None:
            errors.append({"file": path, "error": str(pixels)})
            print(f"error: {printable(path)}: {pixels}", file=sys.stderr)
            continue
        if args.plots and len(first) < 25:
            first.append((path, pixels, probabilities))
        (p, q), (digit, other) = (values.tolist() for values in probabilities.topk(2))
        if args.json:
            entry = {"file": path, "digit": digit, "probability": p, "probabilities": probabilities.tolist()}
            print(between + json.dumps(entry), end="")
            between = ",\n"
        elif args.csv:
            rows.writerow([path, digit, f"{p:.6f}", *(f"{value:.6f}" for value in probabilities.tolist())])
        elif args.probabilities:
            print(f"{printable(path):<18} {digit}  ", *(f"{value:.4f}" for value in probabilities.tolist()))
        else:
            print(f"{printable(path):<18} {digit}  {100 * p:6.2f} %" + f"   (also {other}: {100 * q:.2f} %)" * (q >= 0.01))
    if args.json:
        print('], "errors": ' + json.dumps(errors) + "}")
    if first:
        for name, data in draw_predictions(first).items():
            write(args.plots / name, data)
    return 1 if errors else 0


def run(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    if args.plots:
        check_writable(args.plots / "errors.png", "--plots")
        if not find_spec("matplotlib"):  # ten packages that most runs do not need
            raise Error("--plots needs matplotlib; run it as: uv run --with matplotlib predict.py --plots DIR")
    model = load_weights(args.weights).to(device)
    if args.images:
        return run_images(model, args)
    data_dir = choose_data(args.data_dir, ["test"])
    images, labels = load(data_dir, "test")
    dataset = dataset_name(images, labels, data_dir)
    if dataset == "sample":
        print("note: weights trained on all of MNIST have seen these images: they come from its training half", file=sys.stderr)
    if not args.json:
        print(model, flush=True)
    logits = classify(model, images, args.batch_size)
    if args.report and not args.json:
        print(digit_report(logits.argmax(1), labels))
    if args.plots:
        for name, data in draw_accuracy(images, labels, logits).items():
            write(args.plots / name, data)
    more = {"confusion": confusion_matrix(logits.argmax(1), labels).tolist()} if args.report else {}
    report(logits, labels, dataset, args, device=device.type, **more)
    return 0


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        status = run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError) as error:
        sys.exit(f"error: {error}")
    else:
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main([] if NOTEBOOK else None)
