#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "torchvision==0.29.2"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Report the accuracy of train.py's weights on MNIST's 10,000 test images.

    uv run predict.py            99.5 % of the 10,000 test images, in 2 seconds
    uv run predict.py --json     with calibration error and confusion matrix

read.py reads your own pictures with the same weights.
"""

import argparse
import gc
import gzip
import io
import json
import os
import socket
import sys
import urllib.request
import zlib
from glob import glob
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # not where a notebook or a test imports this file
    gc.disable()  # starts 0.3 to 0.4 s sooner; nothing here makes much garbage
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # twice as fast on a busy machine
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

MNIST_DIR = Path("data/mnist")
SAMPLE_DIR = Path("data/sample")
GZIP_MAGIC = b"\x1f\x8b"


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers with 225,034 parameters.

    Takes (N, 1, 28, 28) float32 from `normalize`, returns (N, 10) logits.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(1600, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        # relu after pooling is the same function at a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32 with MNIST's mean 0, deviation 1."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


@torch.inference_mode()
def classify(model: SimpleCNN, images: Tensor, batch_size: int = 100) -> Tensor:
    """(N, 28, 28) uint8 images to (N, 10) float32 logits on the CPU."""
    model.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    device = model.fc1.weight.device
    batches = images.split(batch_size)  # 100 images stay in a CPU's cache
    return torch.cat([model(normalize(batch.to(device))).cpu() for batch in batches])


# %% Data
class Digits(NamedTuple):
    """Images and what they show."""

    images: Tensor  # (N, 28, 28) uint8, light on black
    labels: Tensor  # (N,) uint8, 0 to 9


def find_data(data_dir: Path) -> Path:
    """The folder to read: `data_dir`; for MNIST_DIR downloaded, or else SAMPLE_DIR."""
    last_file = glob("**/t10k-labels*", root_dir=data_dir, recursive=True)
    if data_dir != MNIST_DIR or last_file:  # no download into a user's files
        return data_dir
    try:
        from torchvision.datasets import MNIST  # here, because it takes 0.8 s

        socket.setdefaulttimeout(10)
        MNIST(data_dir, download=True)
    except Exception as error:
        reason = f"cannot download MNIST into {data_dir} ({error})"
        if not SAMPLE_DIR.is_dir():
            raise Error(f"{reason}; copy its files there") from None
        print(f"note: {reason}; using {SAMPLE_DIR}", file=sys.stderr)
        return SAMPLE_DIR
    return data_dir


def read_file(data_dir: Path, name: str) -> bytes:
    """The contents of a file anywhere below a folder, plain or .gz; raises Error."""
    pattern = "**/" + name.replace("-idx", "[-.]idx")  # the dot is Kaggle's
    paths = glob(pattern, root_dir=data_dir, recursive=True)
    paths = paths or glob(pattern + ".gz", root_dir=data_dir, recursive=True)
    files = [data_dir / path for path in paths if (data_dir / path).is_file()]
    copies = {path.read_bytes(): path for path in files}
    if not copies:
        there = ", ".join(sorted(os.listdir(data_dir))[:5]) or "nothing"
        wanted = f"{name}, plain or .gz (CSV and Parquet are not read)"
        raise Error(f"{data_dir} has no {wanted}, but {there}")
    if len(copies) > 1:
        names = " and ".join(map(str, copies.values()))
        raise Error(f"{names} differ; remove all but one")
    [content] = copies
    return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content


def load(data_dir: Path, split: str) -> Digits:
    """The "train" or "test" digits below a folder; raises Error on bad data."""
    prefix = {"train": "train", "test": "t10k"}[split]
    try:
        image_file = bytearray(read_file(data_dir, f"{prefix}-images-idx3-ubyte"))
        label_file = bytearray(read_file(data_dir, f"{prefix}-labels-idx1-ubyte"))
        # The headers of IDX files have 16 and 8 bytes.
        images = torch.frombuffer(image_file, dtype=torch.uint8, offset=16)
        labels = torch.frombuffer(label_file, dtype=torch.uint8, offset=8)
        digits = Digits(images.view(-1, 28, 28), labels)
        if len(digits.images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{len(digits.images)} images, {len(labels)} labels")
    except (ValueError, RuntimeError, EOFError, zlib.error) as error:
        files = f"{data_dir}'s {prefix}-images and {prefix}-labels"
        raise Error(f"{files} are no 28×28 digits: {error}") from None
    return digits


def load_weights(source: str) -> SimpleCNN:
    """The network, in eval mode, with the state_dict in a file or at a URL.

    It may lie in a checkpoint, and its names may have the prefixes that torch.compile
    and DistributedDataParallel add. Raises Error where none fits.
    """
    model, file = SimpleCNN(), source
    try:
        if "://" in source:
            file = io.BytesIO(urllib.request.urlopen(source, timeout=10).read())
        content = torch.load(file, "cpu", weights_only=True)  # which runs no code
        dicts = [d for d in (content, *content.values()) if isinstance(d, dict)]
        [state] = [d for d in dicts if torch.is_tensor(next(iter(d.values()), None))]
        for prefix in ("_orig_mod.", "module.", "_orig_mod."):
            consume_prefix_in_state_dict_if_present(state, prefix)
        found = {name: list(tensor.shape) for name, tensor in state.items()}
    except OSError as error:
        advice = "`uv run train.py` makes them"
        raise Error(f"no weights in {source} ({error}); {advice}") from None
    except Exception:  # torch's own words for a file with code advise to run it
        raise Error(f"{source} is damaged, or not one plain state_dict") from None
    needed = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    names = [n for n in needed | found if found.get(n) != needed.get(n)]
    if names:
        misfits = [f"{n} is {found.get(n)}, not {needed.get(n)}" for n in names]
        advice = "use the same SimpleCNN in train.py, predict.py, read.py and draw.py"
        raise Error(f"{source} does not fit: {'; '.join(misfits):.80} …; {advice}")
    model.load_state_dict(state)
    return model.eval()


# %% Report
def evaluate(model: SimpleCNN, digits: Digits) -> dict:
    """How the network reads the digits, as `--json` prints it.

    `calibration_error` is the mean gap between confidence and accuracy in 15 bins of
    confidence (Guo et al. 2017), `loss` the mean cross-entropy. `confusion` has a row
    for each true digit and a column for each answer.
    """
    logits = classify(model, digits.images)
    labels = digits.labels.long()
    confidence, answers = logits.softmax(1).max(1)
    right = (answers == labels).float()
    bins = (15 * confidence).long().clamp(max=14)
    gaps = torch.bincount(bins, confidence - right)
    confusion = torch.bincount(10 * labels + answers, minlength=100).view(10, 10)
    return {
        "accuracy": right.mean().item(),
        "correct": int(right.sum()),
        "total": len(labels),
        "loss": F.cross_entropy(logits, labels).item(),
        "calibration_error": gaps.abs().sum().item() / len(labels),
        "confusion": confusion.tolist(),
    }


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Report the accuracy of train.py's weights on MNIST's test images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("pictures", nargs="*", help=argparse.SUPPRESS)
    add("--weights", default="data/mnist_cnn.pt", help="state_dict: a file or a URL")
    add("--data-dir", type=Path, default=MNIST_DIR, help="folder of the test files")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.pictures:
        command = f"uv run read.py {' '.join(args.pictures)}"
        raise Error(f"pictures are read by read.py: {command}")
    model = load_weights(args.weights)
    data_dir = find_data(args.data_dir)
    result = evaluate(model, load(data_dir, "test"))
    if args.json:
        settings = {"weights": args.weights, "data_dir": str(data_dir)}
        print(json.dumps(settings | result | {"torch": torch.__version__}))
    else:
        where = "" if data_dir == MNIST_DIR else f" of {data_dir}"
        what = f"the {result['total']:,} test images{where}"
        print(f"Accuracy of SimpleCNN on {what}: {100 * result['accuracy']:.2f} %")


if __name__ == "__main__":
    try:
        # In a notebook, sys.argv is the kernel's.
        main([] if "ipykernel" in sys.modules else None)
    except (Error, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
