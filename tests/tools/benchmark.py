#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "pillow==13.0.0",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure train.py and predict.py beside the post "uv for data scientists".

    uv run tests/tools/benchmark.py                       the tables of tests/README.md
    uv run tests/tools/benchmark.py --only predict --runs 9

Whole processes, `uv run` included, in turns (A B A B ...), so that a noisy machine
treats all alike. The first round does not count: it builds the environments.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent.parent


# %% The post's recipe, in our own words
def post(job: str, weights: str, data_dir: Path) -> None:
    """Train or predict as the post does; prints the accuracy."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    to_tensor = transforms.ToTensor()
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([to_tensor, normalize])
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)]
    model = nn.Sequential(*layers)
    if job == "train":
        data = datasets.MNIST(data_dir, True, transform)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for images, labels in DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        torch.save(model.state_dict(), weights)
    else:
        # train.py gives its layers other names.
        tensors = torch.load(weights, weights_only=True).values()
        names = model.state_dict()
        model.load_state_dict(dict(zip(names, tensors, strict=True)))
    model.eval()
    right = []
    with torch.no_grad():
        data = datasets.MNIST(data_dir, False, transform)
        for images, labels in DataLoader(data, batch_size=64):
            right.append(model(images).argmax(1) == labels)
    print(f"{100 * torch.cat(right).float().mean():.2f} %")


# %% Processes
class Run(NamedTuple):
    """A whole process with its children."""

    seconds: float
    megabytes: float  # the peak of memory
    output: str

    def accuracy(self) -> float:
        """The percentage that it printed last."""
        return float(re.findall(r"(\S+) %", self.output)[-1])


def measure(command: list) -> Run:
    """Run a command to its end; exits where it fails."""
    command = [str(word) for word in command]
    # Unset, as a user has it: bytecode is kept.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    started = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, encoding="utf-8", **pipes) as process:
        output = process.stdout.read()
        # Unlike process.wait() it counts what the children used.
        _, process.returncode, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if process.returncode:
        words = " ".join(command)
        sys.exit(f"error: this failed, run it alone to see why: {words}")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return Run(seconds, usage.ru_maxrss / unit, output)


# %% Tables
def spread(values: list[float], digits: int) -> str:
    figures = (min(values), median(values), max(values))
    return " / ".join(f"{figure:.{digits}f}" for figure in figures)


def print_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def print_header(*cells: str) -> None:
    print()
    print_row(*cells)
    print("|---" * len(cells) + "|")


def compare(commands: dict[str, list], rounds: int) -> None:
    """Run the commands in turns; the ratios are to the first one of a round."""
    runs = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            runs[name].append(measure(command))
    print_header("min / median / max", "s", "ratio of s", "MB", "accuracy %")
    first, *_ = runs.values()
    for name, mine in runs.items():
        pairs = list(zip(mine, first, strict=True))[1:]  # without the first round
        print_row(
            name,
            spread([run.seconds for run, _ in pairs], 1),
            spread([run.seconds / base.seconds for run, base in pairs], 2),
            spread([run.megabytes for run, _ in pairs], 0),
            spread([run.accuracy() for run, _ in pairs], 2),
        )


def compare_seeds(train: list, predict: list) -> None:
    """Train with several seeds; the test images serve for these figures alone."""
    figures = ["mean %", "min / median / max %", "calibration error %", "cross-entropy"]
    print_header("options of train.py", "seeds", *figures)
    for options, seeds in ([], 5), (["--epochs", 0.3], 3), (["--epochs", 20], 1):
        answers = []
        for seed in range(101, 101 + seeds):  # none that served to choose the recipe
            measure([*train, *options, "--seed", seed])
            answers.append(json.loads(measure([*predict, "--json"]).output))
        accuracies = [100 * answer["accuracy"] for answer in answers]
        print_row(
            " ".join(map(str, options)),
            str(seeds),
            f"{mean(accuracies):.3f}",
            spread(accuracies, 2),
            f"{100 * mean(answer['calibration_error'] for answer in answers):.2f}",
            f"{mean(answer['loss'] for answer in answers):.4f}",
        )


# %% Command line
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure train.py and predict.py beside the post's recipe.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    tables = ["train", "predict", "accuracy"]
    add("--data-dir", type=Path, default=REPO / "data/mnist", help="MNIST's folder")
    add("--runs", type=int, default=5, help="rounds that count")
    add("--only", choices=tables, help="one of the tables", default=argparse.SUPPRESS)
    add("--post", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.post:
        post(*args.post, args.data_dir)
        return
    wanted = [args.only] if "only" in args else tables
    import torch

    isa = torch.backends.cpu.get_cpu_capability()
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    cores, version = os.cpu_count(), platform.python_version()
    print(f"{isa}{' with bf16' * bf16}, {cores} cores, Python {version}")
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.pt"
        data = ["--data-dir", args.data_dir.resolve()]
        options = [*data, "--weights", weights]
        train = ["uv", "run", REPO / "train.py", *options]
        predict = ["uv", "run", REPO / "predict.py", *options]
        the_posts = ["uv", "run", __file__, *data, "--post"]
        if "train" in wanted:
            commands = {
                "the post's train": [*the_posts, "train", f"{folder}/post.pt"],
                "train.py": train,
                "train.py --epochs 0.3": [*train, "--epochs", 0.3],
            }
            compare(commands, args.runs)
        if "predict" in wanted:
            measure(train)
            commands = {
                "the post's predict": [*the_posts, "predict", weights],
                "predict.py": predict,
            }
            compare(commands, args.runs)
        if "accuracy" in wanted:
            compare_seeds(train, predict)


if __name__ == "__main__":
    main()
