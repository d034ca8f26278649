#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "opencv-python-headless==5.0.0.93",
#     "pi-heif==1.4.0",
#     "pillow==13.0.0",
#     "pillow-heif==1.8.1",
#     "torch==2.15.0",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Feed odd and damaged files to train.load, predict.load_weights and read.read_pages.

    uv run tests/tools/fuzz.py --cases 9000

What is read must have the promised form, what is not must raise the script's Error.
Anything else fails, and so does a crash, or more than SECONDS or KILOBYTES; the files
of that case are kept. On Linux.
"""

import argparse
import gzip
import io
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pillow_heif  # writes HEIC, which pi-heif only reads
import torch
from PIL import Image, ImageDraw

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
import predict
import read
import train

SECONDS, KILOBYTES = 20, 2_500_000  # of a case

# %% Sound files
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(3 * 784)
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 5, 9])
DATA = {"t10k-images-idx3-ubyte": IMAGES, "t10k-labels-idx1-ubyte": LABELS}
LEGACY, ZIPPED, STATE = io.BytesIO(), io.BytesIO(), predict.SimpleCNN().state_dict()
torch.save(STATE, LEGACY, _use_new_zipfile_serialization=False)
torch.save(STATE, ZIPPED)
INK = read.load_weights(f"{REPO}/data/ink.pt", read.InkNet, "data/make_ink.py")
SIZES = [(40, 30), (28, 28), (1, 1), (3, 3), (1, 2000), (2000, 1)]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
FORMATS = ["AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"]
FORMATS += ["SGI", "TGA", "TIFF", "WEBP"]
PAGES = [("L", 77), ("RGB", "red"), ("RGBA", 0), ("RGBA", (9, 9, 9, 1)), ("I;16", 9)]
PAGES += [("F", math.nan), ("F", math.inf), ("F", 1e30)]


def make_pictures() -> list[bytes]:
    """Sizes and modes in the formats that hold them; animations, HEIC, colours, NaN."""
    files = []

    def add(image, *format: str, **options) -> None:
        with suppress(KeyError, OSError, ValueError, SystemError):  # no such mode
            image.save(file := io.BytesIO(), *format, **options)
            files.append(file.getvalue())

    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation
    for width, height in SIZES:
        drawn = Image.new("L", (width, height), 255)
        ring = width // 3, height // 6, 2 * width // 3, 5 * height // 6  # a 0
        ImageDraw.Draw(drawn).ellipse(ring, outline=0, width=2)
        colour = drawn.convert("RGB")
        add(pillow_heif.from_pillow(colour))
        for format in FORMATS:
            add(colour, format, save_all=True, append_images=[colour.rotate(180)])
            for mode in MODES:
                add(drawn.convert(mode), format, exif=rotated)
    for mode, paper in PAGES:
        page = Image.new(mode, (40, 30), paper)
        add(page, "TIFF")
        page.paste(Image.new(mode, (4, 20)), (18, 5))
        add(page, "TIFF")
    return files


PICTURES = make_pictures()


# %% Damage
def damage(data: bytes, random: Random) -> bytes:
    """The file with up to four places in it replaced."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.choice([random.randrange(400), random.randrange(1 << 21)])
        start %= len(data) or 1
        noise = random.randbytes(random.randint(1, 12))
        number = random.choice([0, 1, 28, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])
        number = number.to_bytes(4, random.choice(["big", "little"]))  # an offset?
        changes = [(0, noise), (1, noise[:1]), (4, number), (0, data[:64])]
        length, new = random.choice([*changes, (64, b""), (len(data), b"")])
        data[start : start + length] = new
    return bytes(data)


def damage_record(data: bytes, random: Random) -> bytes:
    """A zip file with one record damaged and its checksum right."""
    source = zipfile.ZipFile(io.BytesIO(data))
    chosen = random.choice(source.namelist())
    with zipfile.ZipFile(file := io.BytesIO(), "w") as target:
        for name in source.namelist():
            record = source.read(name)
            target.writestr(name, damage(record, random) if name == chosen else record)
    return file.getvalue()


# %% Cases
def read_data(folder: Path, number: int, random: Random) -> None:
    for name, content in DATA.items():
        if random.random() < 0.5:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / name).write_bytes(random.choice([content, damage(content, random)]))
    images, labels = train.load(folder, "test")
    assert images.dtype == labels.dtype == torch.uint8
    assert images.shape == (len(labels), 28, 28) and labels.max() <= 9


def read_weights(folder: Path, number: int, random: Random) -> None:
    file = LEGACY if number % 3 == 0 else ZIPPED
    change = damage_record if number % 3 == 1 else damage
    path = folder / "weights.pt"
    path.write_bytes(change(file.getvalue(), random))
    model = predict.load_weights(str(path))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def read_picture(folder: Path, number: int, random: Random) -> None:
    picture = PICTURES[number % len(PICTURES)]
    if number >= len(PICTURES):  # the first round is of undamaged ones
        picture = damage(picture, random)
    path = folder / "picture"
    path.write_bytes(picture)
    for page, images in read.read_pages(read.SimpleCNN(), INK, path):
        if "error" in page:
            raise read.Error(page["error"])
        boxes = [digit["box"] for line in page["lines"] for digit in line["digits"]]
        assert images.dtype == np.uint8 and images.shape == (len(boxes), 28, 28)
        assert np.shape(boxes) == (len(images), 4) and np.min(boxes) >= 0


def run(reader, cases: int, folder: Path) -> None:
    # libtiff writes a line for each fault that it finds; Python's own errors stay.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random, successes = Random(), 0
    for number in range(cases):
        for file in folder.iterdir():
            file.unlink()
        signal.alarm(SECONDS)  # kills, also in the middle of C code
        try:
            reader(folder, number, random)
            successes += 1
        except (train.Error, predict.Error, read.Error) as error:
            assert str(error) and "OpenCV" not in str(error), error
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < KILOBYTES
    print(f"{reader.__name__}: {cases:,} cases, {successes:,} of them read")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100_000, help="of all three kinds")
    cases = parser.parse_args().cases // 3
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    for reader in (read_data, read_weights, read_picture):
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=run, args=(reader, cases, folder))
        child.start()  # a process of its own, because it may crash
        child.join()
        if child.exitcode:  # below 0 a signal; SIGALRM is SECONDS
            sys.exit(f"error: status {child.exitcode} with the files in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
