#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "torchvision==0.29.2", "tqdm==4.70.1"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% What it is
"""Train a small convolutional network to read handwritten digits (MNIST) and write its weights.

    uv run train.py                     train with the defaults, write data/mnist_cnn.pt
    uv run train.py --epochs 20         longer and more accurate
    uv run train.py --help              all options

The data come from data/mnist, where the first run downloads them; without a network the sample in data/sample serves.
The last line on stdout is the accuracy on the test images; progress goes to stderr.
"""

import gc
import os
import signal
import sys

NOTEBOOK = "ipykernel" in sys.modules
TEMPORARY = []  # what `write` has begun


def stop(signum, frame):
    """End at once on Ctrl-C or SIGTERM, with one line and the shell's status for it; os._exit, as an import can swallow SystemExit."""
    try:
        for path in TEMPORARY:
            path.unlink(missing_ok=True)
        sys.stderr.write(f"\nerror: stopped by {signal.Signals(signum).name}\n")  # one write, so that no other process comes between
        sys.stdout.flush()
    finally:
        os._exit(128 + signum)


if __name__ == "__main__" and not NOTEBOOK:  # this early, because the imports below take seconds
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # None where it is closed
    sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot show; stderr is so from the start
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # spinning longer saves 3 to 5 %, but beside two busy processes takes 2 to 5 times as long
    gc.disable()  # nothing that the imports make is garbage: not looking for it saves 0.9 of 2.4 s, most of it at exit

# %% Imports and constants
import argparse
import ctypes
import gzip
import hashlib
import http.client
import io
import json
import struct
import time
import urllib.request
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed as dist, nn
from tqdm import tqdm

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    if sys.platform == "linux":  # glibc is to keep what a step frees for the next one: mapping it anew took a third of the time
        ctypes.CDLL(None).mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = {  # MD5 of the test images and labels: nothing else passes for MNIST
    "a9c5e64a683c5dd2f6a9bf7c61b53e6f": "mnist",
    "bdce57e1a50d2d93e7338d5b62aea740": "sample",
}
SAMPLE = Path("data/sample")
NO_BAR = True if os.environ.get("TERM") == "dumb" else None  # None: tqdm looks whether stderr is a terminal


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
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32 by the mean and standard deviation of MNIST's training images."""
    x = (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    return x.contiguous(memory_format=torch.channels_last)  # a CPU takes half the time in this layout


@torch.no_grad()
def classify(model: SimpleCNN, images: Tensor, batch_size: int = 100) -> Tensor:
    """The (N, 10) float32 logits, on the CPU, of (N, 28, 28) uint8 images; batches of 100 stay in a CPU's cache: twice as fast as 500."""
    model.to(memory_format=torch.channels_last)
    logits = torch.empty(len(images), 10)  # one for all: small ones, put where activations were freed, cost 1 run of 7 up to 340 MB
    for part, x in zip(logits.split(batch_size), images.split(batch_size)):
        part.copy_(model(normalize(x.to(model.fc1.weight.device))))
    return logits


# %% Data
def load(data_dir: Path, split: str) -> tuple[Tensor, Tensor]:
    """Split "train" or "test" as (N, 28, 28) uint8 images and (N,) uint8 labels 0..9; raises Error where the files hold anything else.

    They are IDX files: big-endian integers, which say type, dimensions and sizes, then a byte for each pixel or label (format: the
    home page of MNIST, LeCun, Cortes and Burges).
    """
    images_path, labels_path = (data_dir / "MNIST/raw" / name for name in FILES[split])
    images, labels = bytearray(images_path.read_bytes()), bytearray(labels_path.read_bytes())
    n = len(labels) - 8
    whole = n > 0 and len(images) == 16 + 784 * n and images[:16] == struct.pack(">4I", 0x803, n, 28, 28)
    if not whole or labels[:8] != struct.pack(">2I", 0x801, n) or max(labels[8:]) > 9:
        raise Error(f"{images_path} and {labels_path.name} are damaged or not 28×28 images with a digit each; delete both and run again")
    return torch.frombuffer(images, dtype=torch.uint8, offset=16).view(n, 28, 28), torch.frombuffer(labels, dtype=torch.uint8, offset=8)


def fetch(urls: list[str], md5: str | None) -> bytes:
    """The content of the first of `urls` that answers with that MD5 (None: any); raises Error where none does."""
    reasons = []
    for url in urls:
        try:
            with (
                urllib.request.urlopen(url, timeout=10) as response,
                tqdm.wrapattr(response, "read", response.length, desc=url, leave=False, disable=NO_BAR) as reader,
            ):
                data = b"".join(islice(iter(lambda: reader.read(1 << 16), b""), 1 << 10))  # an endless answer ends at 64 MB
            if md5 in (None, hashlib.md5(data).hexdigest()):
                return data
            reasons.append(f"{url}: wrong MD5")
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: it is no URL
            reasons.append(f"{url}: {error}")
    raise Error("; ".join(reasons))


def write(path: Path, data: bytes | None) -> None:
    """Write `path` whole or not at all: a new file beside it takes its place at the end. With None only try whether it could be."""
    target = Path(os.path.realpath(path))  # so that a link stays a link
    temporary = target.parent / f".{os.urandom(8).hex()}.tmp"
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no plain file")
        target.parent.mkdir(parents=True, exist_ok=True)
        TEMPORARY.append(temporary)
        temporary.write_bytes(data or b"")
        if data is not None:
            os.replace(temporary, target)
    except OSError as error:
        raise Error(f"cannot write {path} ({error.strerror or error}); name another place with --weights, --plots or --data-dir") from None
    finally:
        if os.path.exists(temporary):  # unlink(missing_ok=True) fails on names that cannot be
            temporary.unlink()


def choose_data(data_dir: Path | None, splits: list[str]) -> Path:
    """The folder to read: `data_dir` (by default data/mnist), what it lacks downloaded; SAMPLE where that fails and no `data_dir` is named."""
    folder = data_dir or Path("data/mnist")
    paths = [folder / "MNIST/raw" / name for split in splits for name in FILES[split]]
    if missing := [path for path in paths if not path.exists()]:
        from torchvision.datasets import MNIST  # its mirrors and MD5 sums; importing it takes 2 to 4 s, so only where needed

        md5 = dict(MNIST.resources)
        try:  # nothing is written before all have come
            files = [fetch([mirror + path.name + ".gz" for mirror in MNIST.mirrors], md5[path.name + ".gz"]) for path in missing]
        except Error as error:
            if data_dir or not SAMPLE.is_dir():
                raise Error(f"no MNIST in {folder}, and no mirror gives it ({error}); copy it there") from None
            print(f"no mirror gives MNIST ({error}); using the sample in {SAMPLE}", file=sys.stderr)
            return SAMPLE
        for path, data in zip(missing, files):
            write(path, gzip.decompress(data))
    return folder


# %% Training
def distort(x: Tensor, strength: float, shift: float, share: slice = slice(None)) -> Tensor:
    """Distort the images `share` of a batch, (N, 1, 28, 28), each at random: scaled by up to 10 %, sheared by up to 0.3 across and
    0.2 down (together they rotate it), all times `strength`; and shifted by up to `shift` pixels.
    """
    limits = torch.tensor([[0.1 * strength, 0.3 * strength, shift / 14], [0.2 * strength, 0.1 * strength, shift / 14]], device=x.device)
    # Random numbers for the whole batch, so that several processes draw what one would.
    maps = torch.eye(2, 3, device=x.device) + (torch.rand(len(x), 2, 3, device=x.device) * 2 - 1) * limits
    places = (torch.arange(28.0, device=x.device) - 13.5) / 14  # of the pixels: the image is 2 wide and high
    plane = torch.stack([*torch.meshgrid(places, places, indexing="xy"), torch.ones(28, 28, device=x.device)]).view(3, 784)
    # F.affine_grid does the same in 0.65 ms for 256 images, this product in 0.03: a quarter of a second in all.
    grid = (maps[share] @ plane).view(-1, 2, 28, 28).permute(0, 2, 3, 1)
    return F.grid_sample(x[share], grid, padding_mode="border", align_corners=False)


class Muon:
    """Muon (Jordan et al. 2024) for every parameter: a step of the same length in each direction of the matrix.

    It reads 99.47 % of the last 10,000 training images after 1.75 epochs of the others, AdamW 99.40 % after 2. torch.optim.Muon
    takes no convolutions or biases, and costs 2 to 4 s: it imports torch._dynamo. `dtype` is that of the matrix products.
    """

    def __init__(self, model: SimpleCNN, weight_decay: float, dtype: torch.dtype):
        self.weight_decay, self.dtype = weight_decay, dtype
        self.momenta = [(p, torch.zeros_like(p)) for p in model.parameters()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for p, momentum in self.momenta:
            momentum.mul_(0.9).add_(p.grad)
            x = (p.grad + 0.9 * momentum).reshape(len(p), -1).to(self.dtype)
            x = x / (x.norm() + 1e-7)
            # Newton-Schulz brings the singular values near 1; five rounds gain nothing more. A bias has but one, and that is 1.
            for _ in range(3 if p.ndim > 1 else 0):
                gram = x @ x.T
                x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
            # The few small parameters go half as fast: 99.43 % of held-out images in place of 99.40 %, in 12 pairs of runs.
            p.mul_(1 - lr * self.weight_decay).add_(x.view_as(p), alpha=-lr if p.numel() > 10_000 else -lr / 2)


def train(images, labels, *, epochs=1.75, batch_size=256, lr=0.05, seed=0, device="cpu", on_step=None) -> SimpleCNN:
    """Train a new network on (N, 28, 28) uint8 images and their (N,) labels.

    One cycle of the learning rate (Smith and Topin 2018): up to `lr` over a fifth of the steps, then down to zero. Labels
    smoothed by 0.1; images distorted at random, less so in the last 40 % of the steps.
    `on_step(step, steps, loss, accuracy)` is called after each step; `step` counts from 1. Raises Error where the loss is not finite,
    or where a batch is more than the images.
    In a process group (torch.distributed) each process takes its share of every batch, which their number must divide.
    """
    if batch_size > len(images):
        raise Error(f"--batch-size {batch_size} is more than the {len(images)} training images")
    torch.manual_seed(seed)
    device = torch.device(device)
    model = SimpleCNN().to(device, memory_format=torch.channels_last)
    images, labels = images.to(device), labels.long().to(device)  # all 47 MB of them stay where the work is done
    replica, share = model, slice(None)
    if dist.is_initialized():
        replica, share = nn.parallel.DistributedDataParallel(model), slice(dist.get_rank(), None, dist.get_world_size())
    # bf16 takes half the time of fp32 where the processor computes in it, and several times as long where it does not.
    bf16 = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    dose = min(1.0, epochs / 20)  # of what pays in many epochs only: weight decay, a rougher start, a calmer end
    optimizer = Muon(model, 0.1 * dose, torch.bfloat16 if bf16 else torch.float32)
    steps_per_epoch = len(images) // batch_size
    steps = max(1, round(epochs * steps_per_epoch))
    for step in range(steps):
        if step % steps_per_epoch == 0:
            batches = torch.randperm(len(images), device=device).split(batch_size)
        batch = batches[step % steps_per_epoch]
        # Calmer images at the end are what the network will be asked to read: in 20 epochs 0.12 points of held-out accuracy, half
        # of it because the shifts stay.
        strength = 1 + 0.2 * dose if step < 0.6 * steps else 0.3 - 0.2 * dose
        x = distort(normalize(images[batch]), strength, 2 * max(strength, dose), share)
        y = labels[batch[share]]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = replica(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=0.1)
        model.zero_grad()
        loss.backward()
        optimizer.step(lr * min((step + 1) / steps / 0.2, (1 - step / steps) / 0.8))
        if not loss.isfinite():
            raise Error(f"the loss is {loss.item()} at step {step + 1}; try a smaller --lr")
        if on_step:
            on_step(step + 1, steps, loss.item(), (logits.argmax(1) == y).float().mean().item())
    return model


def save(model: SimpleCNN, path: Path) -> None:
    """Write the state_dict: float32 on the CPU in the default memory layout, nothing else."""
    state = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()  # torch.save puts the name of a file into it: with a temporary name the same weights would differ
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def draw(images: Tensor, labels: Tensor, history: list[tuple[float, float]]) -> dict:
    """matplotlib's Figures of the first nine images with their labels, and of the loss and the accuracy in each step of `history`."""
    from matplotlib.figure import Figure  # only where a picture is wanted: it takes a second

    examples, training = Figure((4.5, 5), layout="constrained"), Figure((9, 3.5), layout="constrained")
    for axis, image, label in zip(examples.subplots(3, 3).flat, images, labels):
        axis.imshow(image.numpy(), cmap="gray")
        axis.set_title(f"label {label}")
        axis.axis("off")
    for axis, name, values in zip(training.subplots(1, 2), ("loss", "accuracy"), zip(*history)):
        axis.plot(values)
        axis.set(xlabel="step", ylabel=name)
    return {"examples.png": examples, "training.png": training}


# %% Command line
def report(logits: Tensor, labels: Tensor, dataset: str, args: argparse.Namespace, **more) -> None:
    """Print the accuracy as the last line or, with --json, as an object with all there is to say."""
    correct, total = int((logits.argmax(1) == labels).sum()), len(labels)
    if args.json:
        result = {"accuracy": correct / total, "correct": correct, "total": total, "dataset": dataset}
        result |= {"loss": F.cross_entropy(logits, labels.long()).item(), "weights": str(args.weights), **more}
        result |= {"python": sys.version.split()[0], "torch": version("torch"), "torchvision": version("torchvision")}
        print(json.dumps(result))
    else:
        source = {"mnist": "", "sample": " of the sample"}.get(dataset, f" of {dataset}")
        print(f"Accuracy of SimpleCNN on the {total:,} test images{source}: {100 * correct / total:.2f} %")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train SimpleCNN on MNIST and write its weights.")
    add = parser.add_argument
    add("--epochs", type=float, metavar="N", help="passes over the images, also below 1 (default: 1.75; 20 for fewer than 10,000 images)")
    add("--batch-size", type=int, metavar="N", default=256, help="images in a step (default: %(default)s)")
    add("--lr", type=float, default=0.05, help="highest learning rate (default: %(default)s)")
    add("--seed", type=int, metavar="N", default=0, help="of weights, order and distortions (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="auto is the accelerator or else cpu (default: %(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="MNIST in torchvision's layout, DIR/MNIST/raw (default: data/mnist)")
    add("--weights", type=Path, metavar="FILE", default="data/mnist_cnn.pt", help="state_dict to write (default: %(default)s)")
    add("--plots", type=Path, metavar="DIR", help="draw examples.png and training.png there, with matplotlib (default: off)")
    add("--json", action="store_true", help="print one JSON object on stdout and nothing else (default: off)")
    args = parser.parse_args(argv)
    limits = {"epochs": (0.001, 10_000), "batch_size": (1, 60_000), "lr": (1e-9, 1e9), "seed": (0, 2**63 - 1)}
    for name, (least, most) in limits.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name.replace('_', '-')} {value} is not between {least} and {most}")
    here = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if args.device not in ("auto", "cpu", here.type):
        parser.error(f"no {args.device} device here; run with --device {here.type}")
    args.device = here if args.device == "auto" else torch.device(args.device)
    return args


def run(args: argparse.Namespace) -> None:
    """Train here or as one of the processes that torchrun started: the first to fail says why, the others end in silence."""
    if not dist.is_torchelastic_launched():
        return run_one(args)
    store, rank, size = next(dist.rendezvous("env://"))
    for code in (signal.SIGINT, signal.SIGTERM):  # by which torchrun ends the others
        signal.signal(code, lambda *which: os._exit(1) if store.add("errors", 1) > 1 else stop(*which))
    torch.set_num_threads(max(1, os.cpu_count() // int(os.environ["LOCAL_WORLD_SIZE"])))  # torchrun leaves them one each
    try:
        if args.batch_size % size:
            raise Error(f"--batch-size {args.batch_size} is not a multiple of the {size} processes")
        backend = "gloo"
        if args.device.type == "cuda":
            backend, args.device = "cpu:gloo,cuda:nccl", torch.device("cuda", dist.get_node_local_rank())
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(minutes=10))
        run_one(args, rank, dist.get_node_local_rank())
        dist.destroy_process_group()
    except (Error, OSError, RuntimeError) as error:  # RuntimeError: another process is gone
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others now; whoever is first has yet to say why
        if store.add("errors", 1) > 1:
            sys.exit(1)
        raise Error(f"process {rank}: {error}") if isinstance(error, RuntimeError) else error


def run_one(args: argparse.Namespace, rank: int = 0, local_rank: int = 0) -> None:
    started = time.perf_counter()
    if rank == 0:
        write(args.weights, None)  # what cannot be written is said now, not after the training
    if rank == 0 and args.plots:
        for name in ("examples.png", "training.png"):
            write(args.plots / name, None)
        if not find_spec("matplotlib"):  # ten packages that most runs do not need
            raise Error("--plots needs matplotlib; run it as: uv run --with matplotlib train.py --plots DIR")
    data_dir = choose_data(args.data_dir, ["train", "test"]) if local_rank == 0 else None
    if dist.is_initialized():  # one process of each host has looked for the data; the others wait for what it found
        dist.all_gather_object(found := [None] * dist.get_world_size(), data_dir)
        data_dir, *others = set(found) - {None}
        if others:
            raise Error("the hosts have different data; give all of them the same --data-dir")
    images, labels = load(data_dir, "train")
    test_images, test_labels = load(data_dir, "test")
    dataset = NAMES.get(hashlib.md5(bytes(test_images.numpy()) + bytes(test_labels.numpy())).hexdigest(), str(data_dir))
    if rank == 0 and not args.json:
        print(SimpleCNN(), flush=True)

    epochs = args.epochs or (1.75 if len(images) >= 10_000 else 20)
    history = []
    with tqdm(unit=" images", unit_scale=True, disable=rank > 0 or NO_BAR) as bar:

        def on_step(step: int, steps: int, loss: float, accuracy: float) -> None:
            history.append((loss, accuracy))
            bar.total = steps * args.batch_size
            bar.desc = f"epoch {step * epochs / steps:.2f} of {epochs:g}: "
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(args.batch_size)
            if bar.disable and rank == 0 and step * 10 % steps < 10:  # a log gets ten lines instead
                print(f"step {step} of {steps}: loss {loss:.3f}", file=sys.stderr)

        model = train(images, labels, epochs=epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed,
                      device=args.device, on_step=on_step)  # fmt: skip
    if rank > 0:
        return
    logits = classify(model, test_images)
    if not F.cross_entropy(logits, test_labels.long()).isfinite():
        raise Error("the loss on the test images is no number; try a smaller --lr")
    save(model, args.weights)
    if args.plots:
        for name, figure in draw(images, labels, history).items():
            figure.savefig(buffer := io.BytesIO(), format="png")
            write(args.plots / name, buffer.getvalue())
    report(logits, test_labels, dataset, args, device=args.device.type, seed=args.seed, epochs=epochs,
           seconds=round(time.perf_counter() - started, 3))  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        status = run(args)
        sys.stdout.flush()
    except (Error, OSError) as error:
        status = "error: " + " ".join(str(error).splitlines())  # a file name may hold a line feed
        if getattr(error, "filename", "") is None:  # stdout takes no more: what it still holds must not fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # its reader has seen enough
            status = 0
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main([] if NOTEBOOK else None)
