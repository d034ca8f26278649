#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = ["torch==2.15.0", "torchvision==0.29.2"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Report the accuracy of train.py's weights on MNIST's test images.

uv run predict.py            99.5 % of the 10,000 images
uv run predict.py --json     calibration error 0.3 %, cross-entropy 0.018, ...
"""

import argparse
import gc
import gzip
import io
import json
import os
import re
import socket
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

IS_COMMAND = __name__ == "__main__" and "ipykernel" not in sys.modules
if IS_COMMAND:
    gc.disable()  # saves 0.35 s of the start
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # idle threads sleep sooner
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MNIST_DIR = Path("data/mnist")
SAMPLE_DIR = Path("data/sample")


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


# %% Data
class Digits(NamedTuple):
    """Images, light on black, and what they show."""

    images: Tensor  # (N, 28, 28) uint8
    labels: Tensor  # (N,) uint8, 0 to 9


def read_idx(data_dir: Path, name: str, *shape: int) -> Tensor:
    """Read (N, *shape) uint8 from such a file below a folder, the least deep."""
    pattern = name.replace("-idx", "?idx") + "*"  # ? for Kaggle's ".idx"
    paths = sorted(p for p in data_dir.rglob(pattern) if p.is_file())
    if not paths:
        raise Error(f"{data_dir} has no {name}, plain or .gz")
    path = min(paths, key=lambda p: len(p.parts))  # plain before .gz
    for other in paths:
        if len(other.parts) == len(path.parts) and other.parent != path.parent:
            raise Error(f"{path} or {other}? name one of their folders")
    data = path.read_bytes()
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        data = bytearray(data[8 + 4 * len(shape) :])  # type, N, shape
        return torch.frombuffer(data, dtype=torch.uint8).view(-1, *shape)
    except Exception as error:
        raise Error(f"{path} is damaged, remove it: {error}") from None


def load(data_dir: Path, split: str) -> Digits:
    """Read the "train" or "test" digits of a folder; raises Error."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images = read_idx(data_dir, f"{prefix}-images-idx3-ubyte", 28, 28)
    labels = read_idx(data_dir, f"{prefix}-labels-idx1-ubyte")
    if len(images) != len(labels) or labels.max() > 9:
        raise Error(f"{data_dir}: {split} images and labels do not match")
    return Digits(images, labels)


def find_data(data_dir: Path) -> Path:
    """Download MNIST into its folder; return that, or the sample's if it fails."""
    if data_dir != MNIST_DIR or any(data_dir.rglob("t10k-labels*")):
        return data_dir
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        from torchvision.datasets import MNIST  # takes 0.8 s

        MNIST(data_dir, download=True)
    except Exception as error:
        reason = f"cannot download MNIST into {data_dir} ({error})"
        if not SAMPLE_DIR.is_dir():
            raise Error(f"{reason}; copy its files there") from None
        print("note: using", SAMPLE_DIR, "as I", *reason.split(), file=sys.stderr)
        return SAMPLE_DIR
    finally:
        socket.setdefaulttimeout(timeout)
    return data_dir


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


# %% Report
def evaluate(model: SimpleCNN, digits: Digits) -> dict:
    """What `--json` prints of the digits read.

    `loss` is the mean cross-entropy, `calibration_error` the mean gap between
    confidence and accuracy in 15 bins (Guo et al. 2017). `confusion` has a row for
    each true digit, a column for each answer.
    """
    logits = classify(model, digits.images)
    labels = digits.labels.long()
    total = len(labels)
    confidence, answers = logits.softmax(1).max(1)
    right = answers == labels
    bins = (15 * confidence).long().clamp(max=14)
    gaps = torch.bincount(bins, confidence - right.float())
    confusion = torch.bincount(10 * labels + answers, minlength=100)
    return {
        "accuracy": int(right.sum()) / total,
        "correct": int(right.sum()),
        "total": total,
        "loss": F.cross_entropy(logits, labels).item(),
        "calibration_error": gaps.abs().sum().item() / total,
        "confusion": confusion.view(10, 10).tolist(),
    }


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    default = "data/mnist_cnn.pt"
    add("--weights", default=default, help=f"file or URL (default: {default})")
    folder = f"of the test files (default: {MNIST_DIR})"
    add("--data-dir", type=Path, default=MNIST_DIR, help=folder)
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    model = load_weights(args.weights)
    data_dir = find_data(args.data_dir.expanduser())
    result = evaluate(model, load(data_dir, "test"))
    seen = data_dir.resolve().match(str(SAMPLE_DIR))
    result |= {"among_mnist_training_images": seen, "torch": torch.__version__}
    result |= {"weights": args.weights, "data_dir": str(data_dir)}
    if args.json:
        print(json.dumps(result))
        return
    what = f"{result['total']:,} test images"
    if seen:
        what = f"1,000 digits of {data_dir}, which are among MNIST's training images"
    elif data_dir != MNIST_DIR:
        what += f" of {data_dir}"
    print(f"Accuracy of SimpleCNN on the {what}: {100 * result['accuracy']:.2f} %")


if __name__ == "__main__":
    if IS_COMMAND:
        gc.freeze()  # saves 0.3 s at the end
    # A notebook's kernel has arguments of its own.
    argv = [] if "kernel_launcher" in sys.argv[0] else None
    try:
        main(argv)
    except (Error, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
