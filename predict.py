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
    sys.stdin, sys.stdout, sys.stderr = (stream or open(os.devnull, "r+") for stream in (sys.stdin, sys.stdout, sys.stderr))  # None where closed
    sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot show; stderr is so from the start
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # spinning longer saves 3 to 5 %, but beside two busy processes takes 2 to 5 times as long
    gc.disable()  # nothing that the imports make is garbage: not looking for it saves 0.9 of 2.4 s, most of it at exit

# %% Imports and constants
import argparse
import contextlib
import csv
import functools
import gzip
import hashlib
import http.client
import io
import json
import math
import pickle
import struct
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    warnings.filterwarnings("ignore", module="PIL")  # it names no file, and what cannot be read is an error

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


# What damaged files make torch.load and Pillow raise; tests/fuzz.py looks for more.
UNREADABLE = (RuntimeError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError, EOFError, struct.error,
              pickle.UnpicklingError)  # fmt: skip
NOT_AN_IMAGE = (*UNREADABLE, OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


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


# %% Weights
def load_weights(source: str) -> SimpleCNN:
    """Read a state_dict from a file, or from a URL by way of torch.hub's cache; raises Error where it is not SimpleCNN's."""
    path, data = source, None
    if source.lower().startswith(("https://", "http://")):
        path = Path(torch.hub.get_dir(), "checkpoints", f"{hashlib.sha256(source.encode()).hexdigest()}.pt")  # many URLs end in the same name
        data = None if path.exists() else fetch([source], None)
    try:
        state = torch.load(path if data is None else io.BytesIO(data), map_location="cpu", weights_only=True)
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
        kind, kind_wanted = ((tuple(t.shape), t.dtype, t.layout, t.device.type) if isinstance(t, Tensor) else type(t) for t in (state[name], wanted[name]))
        if kind != kind_wanted:
            raise Error(f"{source} is of another network: {name} is {kind}, not {kind_wanted}")
        if not state[name].isfinite().all():
            raise Error(f"{source} is spoilt: {name} has a NaN or an infinity in it; train again")
    model.load_state_dict(state)
    if data is not None:  # only now that it has proved right
        with contextlib.suppress(Error):  # the next run can fetch it again
            write(path, data)
    return model


# %% Handwriting: any picture of a digit to MNIST's form
def to_tensor(image):
    """An RGB or L image -> (3 or 1, h, w) uint8."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def box_max(x, r):
    """(h, w) float -> the maximum over (2r + 1, 2r + 1) around each place; places outside are ignored."""
    for _ in range(2):
        x = F.max_pool1d(x, 2 * r + 1, 1, r).T  # along rows, then columns: a tenth of max_pool2d's time
    return x


def darkness(grey, r):
    """(h, w) grey -> how much darker than its paper, 0..1. The paper is the grey with every dark thing narrower than 2r + 1
    filled in; that follows a shadow's edge exactly, where a mean would leave a dark seam along it."""
    paper = -box_max(-box_max(grey, r), r)
    return ((paper - grey) / paper.clamp(min=0.15)).clamp(0, 1)


def without_lines(ink):
    """Take ruled lines out of (h, w) ink: within 5 degrees of level or upright, thin, seen in 7 of 8 strips of the picture."""
    for _ in range(2):
        ink = ink.T
        h, w = ink.shape
        if min(h, w) < 32:
            continue
        strips = ink[:, : w // 8 * 8].reshape(h, 8, -1).median(2).values  # a median ignores what crosses the line
        row, slopes = torch.arange(h)[:, None], torch.arange(-w // 12, w // 12 + 1)  # slope: rows gained over the width
        place = (row + (slopes[:, None, None] * (torch.arange(8) - 3.5) / 8).round().long()).clamp(0, h - 1)
        level = strips[place, torch.arange(8)].kthvalue(2, 2).values  # (slope, row): the second faintest of the eight
        level = level - F.max_pool1d(-F.max_pool1d(-level[:, None], 9, 1, 4), 9, 1, 4)[:, 0]  # a digit's own bar is thicker
        best = level.square().sum(1).argmax()
        line = F.max_pool1d(level[best][None], 3, 1, 1)[0]
        line = line[(row - (slopes[best] * ((torch.arange(w) + 0.5) / w - 0.5)).round().long()).clamp(0, h - 1)]
        ink = torch.where(ink < 1.7 * line, ink - line, ink)  # darker than that: a stroke that crosses the line
    return ink


def main_blob(ink, share):
    """(h, w) ink -> (h, w) bool mask of the blob with most ink, and of those with at least `share` of its ink."""
    count, top = torch.histc(ink, 64, 0, float(ink.max())), float(ink.max())
    n, total = count.cumsum(0), (count * (torch.arange(64) + 0.5)).cumsum(0)
    otsu = ((total[-1] * n / n[-1] - total).square() / (n * (n[-1] - n)).clamp(min=1)).argmax()
    peak = float(ink.flatten().topk(min(20, ink.numel())).values.mean())  # Otsu's threshold fails where ink is a speck
    mask = ink > max((float(otsu) + 0.5) / 64 * top, 0.4 * peak, 0.04)
    # Labels spread over cells of 4 x 4 pixels, so that pieces a few pixels apart are one blob.
    cells = F.max_pool2d(box_max(mask.float(), 6)[None, None], 4, 4, ceil_mode=True)[0, 0]
    label, before = torch.arange(cells.numel()).view(cells.shape) * cells, None
    while before is None or not torch.equal(label, before):
        before, label = label, F.max_pool2d(label[None, None], 3, 1, 1)[0, 0] * cells
        label = label.flatten()[label.long()]  # the label of my label: 10 rounds in place of 100
    label = label.repeat_interleave(4, 0).repeat_interleave(4, 1)[: len(ink), : len(ink.T)].long() * mask
    mass = torch.bincount(label.flatten(), weights=ink.flatten())
    mass[torch.cat([*label[[0, -1]], *label.T[[0, -1]]])] *= 0.1  # what touches the edge is more likely a shadow
    mass[0] = 0
    if mass.max() <= 0.25 * mass.sum():  # many alike are crossings of lines, or grain; a digit had 0.5 or more in every kind
        raise Error("no ink found")
    return (mass >= share * mass.max())[label]


def bounds(mask):
    """(h, w) bool -> left, top, right, bottom of what is True."""
    y, x = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def find_ink(photo, box, side, blur, share):
    """Look at `box` of an RGB photo, `side` pixels long -> the digit's (h, w) bool mask and its contrast over the grain's."""
    scale = side / max(box[2] - box[0], box[3] - box[1])
    w, h = max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale))
    small = photo.resize((w, h), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
    small = small.filter(ImageFilter.BoxBlur(blur))
    rgb = to_tensor(small) / 255
    rest = rgb - to_tensor(small.filter(ImageFilter.BoxBlur(side // 6))) / 255
    weight = torch.linalg.eigh(rest.flatten(1).cov()).eigenvectors[:, 2]  # the mix of channels in which the ink shows
    weight = (weight if weight.sum() > 0 else -weight).clamp(min=0)[:, None, None]
    weight = weight / weight.sum()
    grey, rest = (rgb * weight).sum(0), (rest * weight).sum(0)
    # Ink is the rarer side, so it skews the grey; where thick ink fills the picture, the edge still is mostly paper. The 9th power
    # lets a speck of ink outweigh the light: a small digit in a large photo is 10 to 70 deviations strong, a cropped one 4 at most.
    rest = rest / (rest.square().mean().sqrt() + 1e-6)
    edge = torch.cat([*rest[[0, -1]], *rest.T[[0, -1]]]).mean()
    wider = F.pad(rest[None, None], (side // 8,) * 4, mode="replicate")
    if (wider.pow(3) + (wider / 4).pow(9)).mean() > 1.5 * edge:  # without it 92 % of the small digits under a lamp, with it 98 %
        grey = 1 - grey
    # Repeating the edge makes a shadow along it paper, and a cropped digit's stroke only where it is longer than the window. With a
    # sixth of the picture in place of a fifth, thick cropped digits are read worse (97.3 for 98.6 % of held-out ones), narrow shadows
    # better (60 for 50 %).
    r = side // 5
    wide = F.pad(grey[None, None], (r,) * 4, mode="replicate")[0, 0]
    ink = without_lines(darkness(wide, r)[r : r + h, r : r + w])
    mask = main_blob(ink, share)
    paper = ink[~mask] if not mask.all() else torch.zeros(1)
    grain = (paper - paper.median()).abs().mean()
    return mask, float((ink[mask].median() - paper.median()) / (grain + 1e-3))


def flatten(image: Image.Image) -> Image.Image:
    """Any picture -> upright, "L" or "RGB", at most 1600 x 1600; transparency counts as white paper, under white ink as black.
    Decodes it: raises as Pillow does."""
    image.draft("RGB", (1600, 1600))  # a JPEG is decoded at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32 bits: of whatever range
        image = image.convert("F")
        image.thumbnail((1600, 1600))
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32).nan_to_num(0, 0, 0).double()
        values = (values - values.min()) * 255 / (values.max() - values.min()).clamp(min=1e-9)
        image = Image.fromarray(values.round().byte().view(image.height, image.width).numpy())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if page.convert("L").getextrema()[0] > 240:  # white ink shows on black only
            page = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        image = page
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.thumbnail((1600, 1600))
    return image


def without_surroundings(photo):
    """Paint paper over the frame or the table around the page of an RGB photo. That is what takes most of the edge, and all that is
    connected with it and 64 or more away from the median grey, if it leaves a rectangle."""
    small = to_tensor(photo.reduce(max(1, max(photo.size) // 224)))
    grey = small.float().mean(0)
    far = (grey - grey.median()).abs() >= 64
    edge = torch.ones_like(far)
    edge[1:-1, 1:-1] = False
    if far[edge].float().mean() < 0.8:
        return photo
    around, before = (edge & far).float(), torch.zeros(())
    while not around.equal(before):
        before, around = around, box_max(around, 1) * far
    # A rectangle has 12 times the root of its places' covariance, an ellipse 12.6, a thick digit of more ink than paper less: without
    # this 91 % of the small cropped ones are read, with it 98 %. Of framed digits 99 % are, without all this 16 %.
    page = (around == 0).nonzero().T.float()
    if abs(page.shape[1] / page.cov(correction=0).det().abs().sqrt() - 12) > 0.1:
        return photo
    mask = Image.fromarray(box_max(255 * around, 2).byte().numpy())  # its soft rim too
    paper = Image.new("RGB", photo.size, tuple(small.flatten(1).median(1).values.tolist()))
    return Image.composite(paper, photo, mask.resize(photo.size))


def prepare(image: Image.Image) -> Tensor:
    """An "L" or "RGB" picture of one digit -> (28, 28) uint8, light on black, as MNIST was made (LeCun et al., "Gradient-based learning
    applied to document recognition", 1998): cut to the ink, the longer side 20 pixels, the centre of mass in the middle of 28 x 28.

    Of any size, dark on light or light on dark. An "L" picture of 28 x 28 that is light on black passes unchanged. Raises Error for a
    blank picture.
    """
    if image.size == (28, 28) and image.mode == "L":
        pixels = to_tensor(image)[0]
        if torch.cat([*pixels[[0, -1]], *pixels.T[[0, -1]]]).float().mean() < 64:
            if pixels.max() - pixels.min() < 32:
                raise Error("no ink found")
            return pixels
    photo = without_surroundings(image.convert("RGB"))
    box = (0, 0, *photo.size)
    for side, blur, share in ((224, 1, 1), (160, 2, 0.1)):  # from afar to find the digit, then close to see it
        mask, clear = find_ink(photo, box, side, blur, share)
        scale = max(box[2] - box[0], box[3] - box[1]) / side
        left, top, right, bottom = (box[k % 2] + scale * place for k, place in enumerate(bounds(mask)))
        if share == 1 and min(right - left, bottom - top) > 8 * scale:  # a form's box around the digit is a frame too: without this 36 % are read, with it all
            page = ImageOps.crop(photo.crop((left, top, right, bottom)), 2 * scale)
            if (inner := without_surroundings(page)) is not page:
                with contextlib.suppress(Error):  # it was an angular "0", and nothing is in it
                    return prepare(inner)
        margin = 0.5 * max(right - left, bottom - top)
        box = max(0, left - margin), max(0, top - margin), min(photo.width, right + margin), min(photo.height, bottom + margin)
    if clear < 5.5:  # measured: grain alone mostly stays below 5, digits in heavy grain start at 6.4, the faintest pencil at 11
        raise Error("no ink found")
    left, top, right, bottom = bounds(mask)
    unit = max(right - left, bottom - top) / 20  # one pixel of MNIST
    mask = F.pad(mask.float(), (10,) * 4)
    outline = math.pi / 4 * (mask.diff(dim=0).abs().sum() + mask.diff(dim=1).abs().sum())  # pixels' edges are longer, by 4 / pi
    width = 2 * float(mask.sum() / outline) / unit  # of the strokes; MNIST's are mostly 1.6 to 3.6 wide
    grow = round((min(max(width, 2.0), 3.5) - width) / 2 * unit)
    mask = box_max(mask, grow) if grow > 0 else -box_max(-mask, -grow)
    left, top, right, bottom = bounds(mask > 0)
    digit = Image.fromarray((mask * 255).byte().numpy())
    w, h = (max(1, round(20 * length / max(right - left, bottom - top))) for length in (right - left, bottom - top))
    digit = digit.resize((w, h), Image.Resampling.BOX, box=(left, top, right, bottom))
    pixels = to_tensor(digit)[0]
    weight = pixels / pixels.sum()
    top = min(max(round(14 - float(weight.sum(1) @ torch.arange(float(h)))), 0), 28 - h)
    left = min(max(round(14 - float(weight.sum(0) @ torch.arange(float(w)))), 0), 28 - w)
    return F.pad(pixels, (left, 28 - w - left, top, 28 - h - top))


# %% Images
def find_images(paths: list[str]) -> Iterator[str]:
    """The files among `paths`; for a folder the images in it, or itself where there are none: `read_image` says why."""
    for path in paths:
        images = images_below(path) if os.path.isdir(path) else iter([path])
        yield next(images, path)
        yield from images


def images_below(folder: str) -> Iterator[str]:
    """In order of name, by the suffixes that Pillow knows; and the folders that cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        yield folder
        return
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):  # a link may lead back up
            yield from images_below(path)
        elif os.path.splitext(name)[1].lower() in Image.registered_extensions():
            yield path


@functools.cache
def stream(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def open_image(path: str) -> Image.Image:
    if path in ("-", "/dev/stdin") or path.startswith("/dev/fd/"):  # the last is what a shell makes of <(command)
        return Image.open(io.BytesIO(stream(path)))
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # opening a named pipe waits for its writer
        raise Error("it is no plain file")
    return Image.open(path)


def read_image(path: str) -> Tensor:
    """The (28, 28) uint8 that `prepare` makes of a file, or of stdin for "-".

    Raises Error where there is no image, no ink in it, or more than 89 million pixels.
    """
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = flatten(open_image(path))
    except IsADirectoryError:
        raise Error("no images in it") from None
    except UnidentifiedImageError:
        raise Error("it is no image that Pillow knows") from None
    except NOT_AN_IMAGE as error:
        raise Error(str(error) or type(error).__name__) from None
    return prepare(image)


def read_images(model: SimpleCNN, paths: list[str], batch_size: int) -> Iterator[tuple[str, Tensor | Error, Tensor | None]]:
    """For each image its path, the (28, 28) uint8 that the network sees, and its (10,) probabilities; or the path and an Error.

    Holds `batch_size` prepared images at a time, however many there are.
    """
    paths = find_images(paths)
    while batch := list(islice(paths, batch_size)):
        seen = []
        for path in batch:
            try:
                seen.append(read_image(path))
            except Error as error:
                seen.append(Error(str(error)))  # a new one: the traceback of the old one holds the picture and its open file
        pixels = [image for image in seen if isinstance(image, Tensor)]
        probabilities = iter(classify(model, torch.stack(pixels)).softmax(1) if pixels else [])
        yield from ((path, s, next(probabilities) if isinstance(s, Tensor) else None) for path, s in zip(batch, seen))


# %% Pictures
def confusion_matrix(digits: Tensor, labels: Tensor) -> Tensor:
    """(10, 10) counts: row the true digit, column the predicted one."""
    return torch.bincount(labels.long() * 10 + digits, minlength=100).view(10, 10)


def draw_accuracy(images: Tensor, labels: Tensor, logits: Tensor) -> dict:
    """matplotlib's Figures of the confusion matrix and of up to 50 misread images, the most confident first."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    confidence, digits = logits.softmax(1).max(1)
    counts = confusion_matrix(digits, labels)
    matrix = Figure((6, 5.5), layout="constrained")
    axis = matrix.subplots()
    axis.imshow(counts.clamp(min=0.5).numpy(), norm=LogNorm(0.5, int(counts.max())), cmap="Blues")
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
            axis.imshow(images[i].numpy(), cmap="gray")
            axis.set_title(f"{labels[i]} → {digits[i]}  {confidence[i]:.0%}", fontsize=8)
    return {"confusion.png": matrix, "errors.png": errors}


def draw_predictions(results: list[tuple[str, Tensor, Tensor]]) -> dict:
    """A Figure with a row for each image: the input, the 28×28 that the network saw, and a bar for each probability."""
    from matplotlib.figure import Figure

    figure = Figure((7, 1.5 * len(results) + 0.3), layout="constrained")
    for row, (path, pixels, probabilities) in zip(figure.subplots(len(results), 3, squeeze=False), results):
        (image := flatten(open_image(path)).convert("RGB")).thumbnail((300, 300))  # 25 large ones take gigabytes
        row[0].imshow(image)
        row[0].set_title(os.path.basename(printable(path))[-30:], fontsize=8, parse_math=False)
        row[1].imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255)
        row[2].bar(range(10), probabilities.numpy())
        row[2].set(xticks=range(10), ylim=(0, 1))
        for axis in row[:2]:
            axis.axis("off")
    return {"predictions.png": figure}


def write_figures(folder: Path, figures: dict) -> None:
    for name, figure in figures.items():
        figure.savefig(buffer := io.BytesIO(), format="png")
        write(folder / name, buffer.getvalue())


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


def digit_report(digits: Tensor, labels: Tensor) -> str:
    """A table of the accuracy for each digit, and the five commonest confusions."""
    counts = confusion_matrix(digits, labels)
    lines = ["digit  images  correct  accuracy"]
    for digit, row in enumerate(counts.tolist()):
        if any(row):
            lines.append(f"{digit:5}  {sum(row):6}  {row[digit]:7}  {100 * row[digit] / sum(row):6.2f} %")
    values, places = counts.fill_diagonal_(0).flatten().topk(5)
    if values.any():
        lines += ["", "true  predicted  times"]
    lines += [f"{place // 10:4}  {place % 10:9}  {value:5}" for value, place in zip(values.tolist(), places.tolist()) if value]
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Read handwritten digits with the weights that train.py made.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="an image, a folder of images, or - for one on stdin (default: MNIST's test images)")
    add("--weights", metavar="FILE", default="data/mnist_cnn.pt", help="state_dict: a file, or a URL, kept below $TORCH_HOME (default: %(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="MNIST in torchvision's layout, DIR/MNIST/raw (default: data/mnist)")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="auto is the accelerator or else cpu (default: %(default)s)")
    add("--batch-size", type=int, metavar="N", default=100, help="images at a time (default: %(default)s)")
    add("--probabilities", action="store_true", help="print all ten for each IMAGE (default: off)")
    add("--report", action="store_true", help="print the accuracy for each digit and the commonest confusions (default: off)")
    add("--plots", type=Path, metavar="DIR", help="draw confusion.png and errors.png there, or predictions.png of the first 25"
        " IMAGEs, with matplotlib (default: off)")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else (default: off)")
    form.add_argument("--csv", action="store_true", help="print a line of CSV for each IMAGE (default: off)")
    args = parser.parse_args(argv)
    if not 1 <= args.batch_size <= 60_000:
        parser.error(f"--batch-size {args.batch_size} is not between 1 and 60000")
    if args.images and args.report or not args.images and (args.csv or args.probabilities):
        parser.error("--report is for the test images; --csv and --probabilities are for IMAGEs")
    here = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if args.device not in ("auto", "cpu", here.type):
        parser.error(f"no {args.device} device here; run with --device {here.type}")
    args.device = here if args.device == "auto" else torch.device(args.device)
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
    results = tqdm(read_images(model, args.images, args.batch_size), unit=" images", disable=sys.stdout.isatty() or NO_BAR)
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
            print(f"{printable(path):<17}  {digit}  ", *(f"{value:.4f}" for value in probabilities.tolist()))
        else:
            print(f"{printable(path):<17}  {digit}  {100 * p:6.2f} %" + f"   (also {other}: {100 * q:.2f} %)" * (q >= 0.01))
    if args.json:
        print('], "errors": ' + json.dumps(errors) + "}")
    if first:
        write_figures(args.plots, draw_predictions(first))
    return 1 if errors else 0


def run(args: argparse.Namespace) -> int:
    if args.plots:
        write(args.plots / "errors.png", None)
        if not find_spec("matplotlib"):  # ten packages that most runs do not need
            raise Error("--plots needs matplotlib; run it as: uv run --with matplotlib predict.py --plots DIR")
    model = load_weights(args.weights).to(args.device)
    if args.images:
        return run_images(model, args)
    data_dir = choose_data(args.data_dir, ["test"])
    images, labels = load(data_dir, "test")
    dataset = NAMES.get(hashlib.md5(bytes(images.numpy()) + bytes(labels.numpy())).hexdigest(), str(data_dir))
    if dataset == "sample":
        print("note: weights trained on all of MNIST have seen these images: they come from its training half", file=sys.stderr)
    if not args.json:
        print(model, flush=True)
    logits = classify(model, images, args.batch_size)
    if args.report and not args.json:
        print(digit_report(logits.argmax(1), labels))
    if args.plots:
        write_figures(args.plots, draw_accuracy(images, labels, logits))
    more = {"confusion": confusion_matrix(logits.argmax(1), labels).tolist()} if args.report else {}
    report(logits, labels, dataset, args, device=args.device.type, **more)
    return 0


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
