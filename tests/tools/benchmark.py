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

Each run is a fresh `uv run`, in turns (A B A B ...), so that a noisy machine treats all alike. The first
round does not count: it builds the environments.
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


def baseline(job: str, weights: str, data_dir: Path) -> None:
    """Train or predict by the post's recipe, in our own words; prints the accuracy as JSON."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train, test = (datasets.MNIST(data_dir, split, transform) for split in (True, False))
    convolutions = (nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3))
    layers = [layer for conv in convolutions for layer in (conv, nn.ReLU(), nn.MaxPool2d(2))]
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


def measure(command: list) -> dict:
    """The FIGURES of a whole process with its children, and the JSON it prints; MB is the peak of memory."""
    command = [str(word) for word in command]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # unset, as a user has it: bytecode is kept
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # which counts the children too
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"error: this failed, run it alone to see why: {' '.join(command)}")
    memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    result = json.loads(output)
    values = seconds, usage.ru_utime + usage.ru_stime, memory, 100 * result["accuracy"]
    return result | dict(zip(FIGURES, values))


def spread(values: list[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def compare(commands: dict[str, list], runs: int) -> None:
    """Run the commands in turns and print a table; the ratios are to the first one, within a round."""
    print(f"\n| min / median / max | {' | '.join(FIGURES)} | ratio of s | ratio of MB |\n" + "|---" * 7 + "|")
    rounds = [[measure(command) for command in commands.values()] for _ in range(runs + 1)][1:]
    for name, results in zip(commands, zip(*rounds)):
        cells = [spread([result[key] for result in results], digits) for key, digits in FIGURES.items()]
        pairs = [(result, first) for result, (first, *_) in zip(results, rounds)]
        cells += [spread([result[key] / first[key] for result, first in pairs], 2) for key in ("s", "MB")]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


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
        scripts = REPO / "train.py", REPO / "predict.py"
        train, predict = (["uv", "run", script, *data, "--weights", weights, "--json"] for script in scripts)
        post = ["uv", "run", __file__, *data, "--baseline"]
        if args.only in (None, "train"):
            commands = {"the post's train": [*post, "train", f"{folder}/post.pt"], "train.py": train}
            compare(commands | {"train.py --epochs 0.3": [*train, "--epochs", 0.3]}, args.runs)
        if args.only in (None, "predict"):
            measure(train)
            compare({"the post's predict": [*post, "predict", weights], "predict.py": predict}, args.runs)
        if args.only in (None, "accuracy"):
            print("\n| | seeds | mean % | min / median / max % | calibration error % | loss |")
            print("|---" * 6 + "|")
            for options, seeds in (([], 5), (["--epochs", 0.3], 5), (["--epochs", 20], 3)):
                results = []
                for seed in range(seeds):
                    measure([*train, *options, "--seed", seed])
                    results.append(measure(predict))
                keys = "accuracy %", "calibration_error", "loss"
                values, errors, losses = ([result[key] for result in results] for key in keys)
                cells = f"{mean(values):.3f} | {spread(values, 2)} | {100 * mean(errors):.2f}"
                print("| train.py", *options, f"| {seeds} | {cells} | {mean(losses):.4f} |", flush=True)


if __name__ == "__main__":
    main()
