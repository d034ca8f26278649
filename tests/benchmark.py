#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0", "torch==2.15.0", "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure train.py and predict.py as whole processes beside the recipe of the post "uv for data scientists".

    uv run tests/benchmark.py [--data-dir DIR] [--runs N] [--only train|predict|accuracy]

Each run is a fresh `uv run`, in turns (A B A B ...), so that a noisy machine treats all alike; ratios are
within a round. The first round does not count: it builds the environments.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

REPO = Path(__file__).resolve().parent.parent
FIGURES = {"s": 1, "CPU s": 1, "MB": 0, "accuracy %": 2}  # and their decimals


# %% The post's recipe in our own words: per-image transforms, one epoch of plain SGD, float32
def baseline(job: str, weights: str, data_dir: Path) -> None:
    """Train or predict; prints the accuracy as JSON."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train, test = (datasets.MNIST(data_dir, split, transform) for split in (True, False))
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))
    if job == "train":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for images, labels in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        torch.save(model.state_dict(), weights)
    else:  # train.py's, whose names are others
        model.load_state_dict(dict(zip(model.state_dict(), torch.load(weights, weights_only=True).values())))
    model.eval()
    with torch.no_grad():
        right = [model(images).argmax(1) == labels for images, labels in DataLoader(test, batch_size=64)]
    print(json.dumps({"accuracy": torch.cat(right).float().mean().item()}))


# %% Measuring
def measure(command: list) -> dict:
    """The FIGURES of a whole process with its children, and the JSON it prints; MB is the peak of memory."""
    command = [str(word) for word in command]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # which counts the children too
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"error: this failed, run it alone to see why: {' '.join(command)}")
    result = json.loads(output)
    memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    values = seconds, usage.ru_utime + usage.ru_stime, memory, 100 * result["accuracy"]
    return result | dict(zip(FIGURES, values))


def spread(values: list[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def compare(commands: dict[str, list], runs: int) -> None:
    """Run the commands in turns and print a table; the first is what the ratios refer to."""
    print(f"\n| min / median / max | {' | '.join(FIGURES)} | ratio of s | ratio of MB |\n" + "|---" * 7 + "|")
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(runs + 1)][1:]
    first = next(iter(commands))
    for name in commands:
        cells = [spread([one[name][key] for one in rounds], digits) for key, digits in FIGURES.items()]
        cells += [spread([one[name][key] / one[first][key] for one in rounds], 2) for key in ("s", "MB")]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def accuracy(name: str, train: list, predict: list, seeds: int) -> None:
    """Print a line of the accuracy table: what predict.py says of the weights of several seeds."""
    results = []
    for seed in range(seeds):
        measure([*train, "--seed", seed])
        results.append(measure(predict))
    accuracies = [result["accuracy %"] for result in results]
    error = 100 * mean(result["calibration_error"] for result in results)
    loss = mean(result["loss"] for result in results)
    cells = f"{mean(accuracies):.3f} | {spread(accuracies, 2)} | {error:.2f} | {loss:.4f}"
    print(f"| {name} | {seeds} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, default=REPO / "data/mnist", help="MNIST in torchvision's layout")
    add("--runs", type=int, default=5, help="rounds that count")
    add("--only", choices=["train", "predict", "accuracy"], help="one of the tables")
    add("--baseline", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.baseline:
        return baseline(*args.baseline, args.data_dir)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        weights, data = f"{folder}/weights.pt", ["--data-dir", args.data_dir.resolve()]
        train = ["uv", "run", REPO / "train.py", *data, "--weights", weights, "--json"]
        predict = ["uv", "run", REPO / "predict.py", *data, "--weights", weights, "--json"]
        post = ["uv", "run", __file__, *data, "--baseline"]
        short, long = [*train, "--epochs", 0.3], [*train, "--epochs", 20]
        if args.only in (None, "train"):
            commands = {"the post's train": [*post, "train", f"{folder}/post.pt"], "train.py": train}
            compare(commands | {"train.py --epochs 0.3": short}, args.runs)
        if args.only in (None, "predict"):
            measure(train)
            compare({"the post's predict": [*post, "predict", weights], "predict.py": predict}, args.runs)
        if args.only in (None, "accuracy"):
            print("\n| | seeds | mean % | min / median / max % | calibration error % | loss |")
            print("|---" * 6 + "|", flush=True)
            accuracy("train.py", train, predict, 5)
            accuracy("train.py --epochs 0.3", short, predict, 5)
            accuracy("train.py --epochs 20", long, predict, 3)


if __name__ == "__main__":
    main()
