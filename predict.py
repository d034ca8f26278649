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

# %% Imports and constants
import argparse
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
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = {  # MD5 of the test images and labels: nothing else passes for MNIST
    "a9c5e64a683c5dd2f6a9bf7c61b53e6f": "mnist",
    "8da6c43605317fead14601beb46097df": "sample",
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
def evaluate(model: SimpleCNN, images: Tensor, labels: Tensor, batch_size: int = 500) -> tuple[Tensor, float]:
    """The (N,) digits that the model reads in (N, 28, 28) uint8 images, and the mean cross-entropy in nats to (N,) labels."""
    model.to(memory_format=torch.channels_last)
    device, digits, loss = model.fc1.weight.device, [], 0.0
    for x, y in zip(images.split(batch_size), labels.split(batch_size)):
        logits = model(normalize(x.to(device)))
        digits.append(logits.argmax(1).cpu())
        loss += F.cross_entropy(logits, y.long().to(device), reduction="sum").item()
    return torch.cat(digits), loss / len(labels)


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
            name = hashlib.sha256(source.encode()).hexdigest()[:16] + ".pt"  # two URLs may end in the same name
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", progress=sys.stderr.isatty(), file_name=name, weights_only=True)
        else:
            state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Error(f"there are no weights in {source}; `uv run train.py` makes them") from None
    except OSError as error:
        raise Error(f"cannot read the weights {source} ({error})") from None
    except UNREADABLE as error:
        raise Error(f"{source} is not a state_dict saved by torch.save, or not whole; `uv run train.py` makes one") from error
    model = SimpleCNN()
    wanted = model.state_dict()
    if not isinstance(state, dict):
        raise Error(f"{source} holds a {type(state).__name__}, not a state_dict; save model.state_dict()")
    for name in [*wanted, *state]:
        if name not in state or name not in wanted:
            raise Error(f"{source} is of another network: {name} is {'missing' if name in wanted else 'not in SimpleCNN'}")
        found = [(tuple(t.shape), t.dtype) if isinstance(t, Tensor) else type(t) for t in (state[name], wanted[name])]
        if found[0] != found[1]:
            raise Error(f"{source} is of another network: {name} is {found[0]}, not {found[1]}")
        if not state[name].isfinite().all():
            raise Error(f"{source} is spoilt: {name} has a NaN or an infinity in it; train again")
    model.load_state_dict(state)
    return model


# %% Command line
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Read handwritten digits with the weights that train.py made.")
    add = parser.add_argument
    add("--weights", metavar="FILE", default="data/mnist_cnn.pt", help="state_dict to read, a file or a URL (default: %(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="MNIST in torchvision's layout, DIR/MNIST/raw (default: data/mnist)")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="auto takes the accelerator that is there (default: %(default)s)")
    add("--batch-size", type=number(int, 1, 60_000), metavar="N", default=500, help="images at a time (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object on stdout and nothing else (default: off)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    device = choose_device(args.device)
    model = load_weights(args.weights).to(device)
    data_dir = choose_data(args.data_dir, ["test"])
    images, labels = load(data_dir, "test")
    if not args.json:
        print(model, flush=True)
    digits, loss = evaluate(model, images, labels, args.batch_size)
    correct, total = int((digits == labels).sum()), len(labels)
    dataset = dataset_name(images, labels, data_dir)
    if dataset == "sample":
        print("note: weights trained on all of MNIST have seen these images, which come from its training half", file=sys.stderr)
    if args.json:
        print(json.dumps({
            "accuracy": correct / total, "correct": correct, "total": total, "loss": loss, "dataset": dataset,
            "weights": args.weights, "device": device.type, "seconds": round(time.perf_counter() - started, 3),
            "python": platform.python_version(), "torch": version("torch"), "torchvision": version("torchvision"),
        }))  # fmt: skip
    else:
        source = {"mnist": "", "sample": " of the sample"}.get(dataset, f" of {dataset}")
        print(f"Accuracy of SimpleCNN on the {total:,} test images{source}: {100 * correct / total:.2f} %")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot show
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main([] if NOTEBOOK else None)
