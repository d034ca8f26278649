#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0", "torch==2.15.0", "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure train.py and predict.py against the recipe of the post "uv for data scientists", as whole processes.

    uv run tests/benchmark.py [--data-dir DIR] [--runs N] [--only train|predict|accuracy]

Each run is a fresh `uv run`, taken in turns (A B A B ...), so that a noisy machine treats all alike; the ratio is the median
over the rounds. Bytecode is kept, as on a user's machine, and the first round, which builds the environments, does not count.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


# The baseline, in our own words: per-image transforms, one epoch of plain SGD, float32.
def loader(data_dir: str, train: bool):
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return DataLoader(datasets.MNIST(data_dir, train=train, transform=transform), batch_size=64, shuffle=train)


def network():
    import torch.nn as nn

    class SimpleCNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
            self.fc1, self.fc2 = nn.Linear(1600, 128), nn.Linear(128, 10)
            self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()

        def forward(self, x):
            x = self.pool(self.relu(self.conv1(x)))
            x = self.pool(self.relu(self.conv2(x)))
            return self.fc2(self.relu(self.fc1(x.flatten(1))))

    return SimpleCNN()


def baseline(job: str, data_dir: str, weights: str) -> None:
    """The post's train or predict; prints its accuracy as JSON."""
    import torch
    import torch.nn.functional as F

    model = network()
    if job == "train":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for images, labels in loader(data_dir, train=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    else:
        model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader(data_dir, train=False):
            correct += (model(images).argmax(1) == labels).sum().item()
            total += len(labels)
    if job == "train":
        torch.save(model.state_dict(), weights)
    print(json.dumps({"accuracy": correct / total}))


# Measuring
def measure(command: list[str]) -> dict:
    """Wall and CPU seconds and peak memory in MB of a whole process with all its children, and the accuracy it reports."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        out.seek(0), err.seek(0)
        if status:
            sys.exit(f"error: {' '.join(command)} failed: {err.read().decode()}")
        accuracy = json.loads(out.read().splitlines()[-1])["accuracy"]
    megabytes = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"wall": wall, "CPU": usage.ru_utime + usage.ru_stime, "memory": megabytes, "accuracy": 100 * accuracy}


def spread(values, digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def compare(commands: dict[str, list[str]], runs: int) -> None:
    """Run the commands in turns and print a table; the first of them is the baseline."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(runs + 1)][1:]
    print("\n| min / median / max | wall s | CPU s | peak memory MB | accuracy % | wall : baseline | memory : baseline |")
    print("|---|---|---|---|---|---|---|")
    first = next(iter(commands))
    for name in commands:
        cells = [spread([r[name][key] for r in rounds], digits) for key, digits in (("wall", 1), ("CPU", 1), ("memory", 0), ("accuracy", 2))]
        ratios = [spread([r[name][key] / r[first][key] for r in rounds], 2) for key in ("wall", "memory")]
        print(f"| {name} | " + " | ".join(cells + ratios) + " |", flush=True)


def accuracies(name: str, command: list[str], seeds: range) -> None:
    results = [measure([*command, "--seed", str(seed)]) for seed in seeds]
    values = [result["accuracy"] for result in results]
    print(f"| {name} | {len(values)} | {statistics.mean(values):.3f} | {min(values):.2f} / {max(values):.2f} |"
          f" {spread([result['wall'] for result in results], 1)} |", flush=True)  # fmt: skip


def processor() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure train.py and predict.py against the post's recipe.")
    parser.add_argument("--data-dir", type=Path, default=REPO / "data/mnist", help="MNIST in torchvision's layout (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds that count (default: %(default)s)")
    parser.add_argument("--only", choices=["train", "predict", "accuracy"], help="one of the three tables (default: all)")
    parser.add_argument("--baseline", choices=["train", "predict"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.baseline:
        return baseline(args.baseline, str(args.data_dir), args.weights)
    if not (args.data_dir / "MNIST/raw/train-images-idx3-ubyte").exists():
        sys.exit(f"error: no MNIST in {args.data_dir}; `uv run train.py` downloads it, or name a copy with --data-dir")

    print(f"{platform.machine()}, {processor()}, {os.cpu_count()} cores; Python {platform.python_version()}; {args.runs} rounds")
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.pt"
        common = ["--data-dir", str(args.data_dir.resolve()), "--weights", weights]
        train, predict = (["uv", "run", str(REPO / name), "--json", *common] for name in ("train.py", "predict.py"))
        post = ["uv", "run", str(Path(__file__).resolve()), *common, "--baseline"]
        if args.only in (None, "train"):
            compare({"the post's train": [*post, "train"], "train.py": train, "train.py --epochs 0.3": [*train, "--epochs", "0.3"]}, args.runs)
        if args.only in (None, "predict"):
            measure(train if not args.only else [*train, "--epochs", "0.3"])
            compare({"the post's predict": [*post, "predict"], "predict.py": predict}, args.runs)
        if args.only in (None, "accuracy"):
            print("\n| accuracy on the 10,000 test images | seeds | mean % | min / max % | wall s |\n|---|---|---|---|---|")
            accuracies("train.py", train, range(5))
            accuracies("train.py --epochs 0.3", [*train, "--epochs", "0.3"], range(5))
            accuracies("train.py --epochs 20", [*train, "--epochs", "20"], range(3))


if __name__ == "__main__":
    main()
