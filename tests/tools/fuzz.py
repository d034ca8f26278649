#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "opencv-python-headless==5.0.0.93",
#     "pi-heif==1.4.0",
#     "pillow==13.0.0",
#     "pillow-heif==1.8.1",
#     "pytest==9.2.0",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Feed odd and damaged files to train.load, predict.load_weights and read.prepare.

    uv run tests/tools/fuzz.py                              100,000 cases
    uv run tests/tools/fuzz.py --repeat picture 17 --seed N one of them again

What is read must have the promised form, what is not must raise the script's Error.
Anything else fails, and so does a crash, or more than SECONDS or MEGABYTES. On Linux.
"""

import argparse
import gzip
import io
import math
import multiprocessing
import os
import resource
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
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import FILES, idx, import_script

train, predict, read = map(import_script, ("train", "predict", "read"))
SECONDS, MEGABYTES = 20, 2500  # of a case

# %% Sound files
DATA = {
    FILES[2]: idx((3, 28, 28), bytes(3 * 784)),
    FILES[3]: idx((3,), bytes([0, 5, 9])),
}
SIZES = [(40, 30), (28, 28), (1, 1), (3, 3), (1, 2000), (2000, 1)]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
FORMATS = ["AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"]
FORMATS += ["SGI", "TGA", "TIFF", "WEBP"]
COLOURS = {
    "L": [0, 77, 255],
    "RGB": ["red"],
    "RGBA": [0, (9, 9, 9, 1)],
    "I;16": [0, 65535],
    "F": [math.nan, math.inf, 1e30],
}


def make_weights(zipped: bool) -> bytes:
    torch.manual_seed(0)
    state = predict.SimpleCNN().state_dict()
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def make_pictures() -> list[bytes]:
    """Sizes and modes in the formats that hold them; animations, HEIC, colours, NaN."""
    files = []

    def add(save, *arguments, **options) -> None:
        buffer = io.BytesIO()
        # The format has no such mode or size.
        with suppress(KeyError, OSError, ValueError, SystemError):
            save(buffer, *arguments, **options)
            files.append(buffer.getvalue())

    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation
    for width, height in SIZES:
        drawn = Image.new("L", (width, height), 255)
        drawn.paste(0, (width // 3, 0, width // 2 + 1, height * 3 // 4 + 1))
        coloured = drawn.convert("RGB")
        add(pillow_heif.from_pillow(coloured).save)
        for format in FORMATS:
            frames = [coloured.rotate(180)]
            add(coloured.save, format, save_all=True, append_images=frames)
            for mode in MODES:
                add(drawn.convert(mode).save, format, exif=rotated)
    for mode, colours in COLOURS.items():
        for colour in colours:
            page = Image.new(mode, (40, 30), colour)
            add(page.save, "TIFF")
            page.paste(Image.new(mode, (4, 20)), (18, 5))
            add(page.save, "TIFF")
    return files


LEGACY, ZIPPED, PICTURES = make_weights(False), make_weights(True), make_pictures()


# %% Damage
def damage(data: bytes, random: Random) -> bytes:
    """The file with up to four places in it replaced."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.choice([random.randrange(400), random.randrange(1 << 21)])
        start %= len(data) or 1
        noise = random.randbytes(random.randint(1, 12))
        number = random.choice([0, 1, 28, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])
        # A length or an offset, perhaps.
        number = number.to_bytes(4, random.choice(["big", "little"]))
        changes = [
            (0, noise),
            (1, noise[:1]),
            (4, number),
            (0, data[:64]),
            (64, b""),
            (len(data), b""),
        ]
        length, new = random.choice(changes)
        data[start : start + length] = new
    return bytes(data)


def damage_record(data: bytes, random: Random) -> bytes:
    """A zip file with one record damaged and its checksum right.

    So what reads the record must notice.
    """
    source = zipfile.ZipFile(io.BytesIO(data))
    records = {name: source.read(name) for name in source.namelist()}
    chosen = random.choice(list(records))
    records[chosen] = damage(records[chosen], random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, record in records.items():
            target.writestr(name, record)
    return buffer.getvalue()


# %% Cases
def read_data(folder: Path, number: int, random: Random) -> None:
    for name, content in DATA.items():
        # It would come before its .gz.
        (folder / name).unlink(missing_ok=True)
        packed = gzip.compress(content, mtime=0)
        suffix, content = random.choice([("", content), (".gz", packed)])
        content = random.choice([content, damage(content, random)])
        (folder / f"{name}{suffix}").write_bytes(content)
    images, labels = train.load(folder.parent.parent, "test")
    assert images.dtype == labels.dtype == torch.uint8
    assert images.shape == (len(labels), 28, 28)
    assert labels.max() <= 9


def read_weights(folder: Path, number: int, random: Random) -> None:
    damaged = [
        damage(LEGACY, random),
        damage(ZIPPED, random),
        damage_record(ZIPPED, random),
    ]
    path = folder / "w.pt"
    path.write_bytes(damaged[number % 3])
    model = predict.load_weights(str(path))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def read_picture(folder: Path, number: int, random: Random) -> None:
    picture = PICTURES[number % len(PICTURES)]
    if number >= len(PICTURES):  # the first round is of undamaged ones
        picture = damage(picture, random)
    path = folder / "picture"
    path.write_bytes(picture)
    for page, found in read.prepare(None, path):
        if "error" in page:
            assert "OpenCV" not in page["error"], page
            raise read.Error(page["error"])
        assert found.images.dtype == np.uint8
        assert found.images.shape == (len(found.boxes), 28, 28)
        assert len(found.images)
        assert np.isfinite(found.boxes).all()


READERS = {"data": read_data, "weights": read_weights, "picture": read_picture}
ERRORS = (train.Error, predict.Error, read.Error)


def run(kind: str, numbers: range, seed: int, folder: Path, current) -> None:
    """Run cases in a child process, which may crash.

    `current` tells the parent which one was at work.
    """
    # libtiff writes a line for each fault that it finds; Python's own errors stay.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    successes = 0
    for number in numbers:
        current.value = number
        signal.alarm(SECONDS)  # kills, also in the middle of C code
        try:
            READERS[kind](folder, number, Random(f"{seed} {kind} {number}"))
            successes += 1
        except ERRORS as error:
            assert str(error)
            assert "OpenCV" not in str(error), error
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KB
        assert peak < MEGABYTES * 1024
    print(f"{kind}: {len(numbers):,} cases, {successes:,} of them read")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Feed damaged files to what reads them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--cases", type=int, default=100_000, help="a third each of the three kinds")
    add("--seed", type=int, default=Random().getrandbits(32), help="of the damage")
    add("--repeat", nargs=2, metavar=("KIND", "NUMBER"), help="run one case")
    args = parser.parse_args()
    jobs = {kind: range(args.cases // len(READERS)) for kind in READERS}
    if args.repeat:
        kind, number = args.repeat
        jobs = {kind: [int(number)]}
    context = multiprocessing.get_context("fork")
    current = context.Value("q")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST/raw")
        raw.mkdir(parents=True)
        for kind, numbers in jobs.items():
            job = (kind, numbers, args.seed, raw, current)
            child = context.Process(target=run, args=job)
            child.start()
            child.join()
            if child.exitcode:  # below 0 a signal; SIGALRM is SECONDS
                again = f"--repeat {kind} {current.value} --seed {args.seed}"
                sys.exit(
                    f"error: status {child.exitcode}; again: "
                    f"uv run tests/tools/fuzz.py {again}"
                )
    print(f"seed {args.seed}: nothing but what was to be expected")


if __name__ == "__main__":
    main()
