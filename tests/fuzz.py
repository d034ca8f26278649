#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "hypothesis==6.170.15",
#     "matplotlib==3.11.2",
#     "pillow==13.0.0",
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
"""Feed damaged files to what predict.py reads: data, weights and images.

    uv run tests/fuzz.py [--cases 100000] [--seed N]     about a third of the cases each
    uv run tests/fuzz.py --repeat CASE                   one case again, with its traceback

Whatever is read must have the promised form; whatever is refused must be refused with the script's own Error. Any other
exception, a crash, more than SECONDS or more than MEGABYTES of growth is a failure, and the case that brings it about is printed.
"""

import argparse
import ast
import functools
import importlib.util
import io
import mmap
import os
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
SECONDS, MEGABYTES = 20, 1500

spec = importlib.util.spec_from_file_location("predict", REPO / "predict.py")
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)


# %% Whole files


def idx(shape, data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


@functools.cache
def weights() -> dict[str, bytes]:
    torch.manual_seed(0)
    state = predict.SimpleCNN().state_dict()
    files = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(state, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    return files


@functools.cache
def images() -> dict[str, bytes]:
    gray = Image.new("L", (40, 30), 255)
    gray.paste(0, (18, 5, 22, 25))
    files = {}

    def add(name: str, kind: str, image: Image.Image, **options):
        image.save(buffer := io.BytesIO(), kind, **options)
        files[name] = buffer.getvalue()

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.frombytes("I;16", gray.size, b"".join(bytes([v, v]) for v in gray.tobytes())) if mode == "I;16" else gray.convert(mode)
        add(f"png {mode}", "PNG", image)
        if mode not in ("LA", "P"):
            add(f"tiff {mode}", "TIFF", image, compression={"L": "tiff_lzw", "RGB": "tiff_adobe_deflate", "1": "group4"}.get(mode))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for mode in ("L", "RGB", "CMYK"):
        add(f"jpeg {mode}", "JPEG", gray.convert(mode), exif=rotated, progressive=mode == "RGB")
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        add(f"animated {kind}", kind, gray.convert("RGB"), save_all=True, append_images=[gray.rotate(90).convert("RGB")])
    for kind, mode in (("BMP", "P"), ("BMP", "RGB"), ("DDS", "RGBA"), ("ICNS", "RGBA"), ("ICO", "RGBA"), ("IM", "L"), ("JPEG2000", "RGB"), ("MSP", "1"),
                       ("PCX", "L"), ("PPM", "L"), ("PPM", "RGB"), ("SGI", "L"), ("SPIDER", "F"), ("TGA", "RGB"), ("TIFF", "F"), ("XBM", "1"), ("AVIF", "RGB"),
                       ("QOI", "RGB"), ("BLP", "P")):  # fmt: skip
        try:
            add(f"{kind} {mode}", kind, gray.convert(mode))
        except (OSError, KeyError, ValueError):  # not every build of Pillow writes each of them
            pass
    return files


# %% Cases: literals such as ("image", "png L", [("set", 17, 255)])

position = st.integers(0, 400) | st.integers(-600, -1) | st.integers(0, 1 << 21)
special = st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 28, 50_000, 1 << 20])
edit = st.one_of(
    st.tuples(st.just("set"), position, st.integers(0, 255)),
    st.tuples(st.just("flip"), position, st.integers(0, 7)),
    st.tuples(st.just("number"), position, special, st.sampled_from(["big", "little"]), st.sampled_from([2, 4, 8])),
    st.tuples(st.just("insert"), position, st.binary(max_size=12)),
    st.tuples(st.just("drop"), position, st.integers(1, 64)),
    st.tuples(st.just("copy"), position, position, st.integers(1, 64)),
    st.tuples(st.just("cut"), position),
)
edits = st.lists(edit, max_size=4)
rezip = st.tuples(st.sampled_from(["keep", "leave out", "rename", "twice", "deflate", "empty", "foreign"]), st.integers(0, 15))
cases = {
    "data": st.tuples(st.just("data"), edits, edits),
    "weights": st.one_of(
        st.tuples(st.just("weights"), st.sampled_from(["zip", "legacy"]), edits),
        st.tuples(st.just("weights"), st.just("records"), edits, rezip),  # an edited pickle with the right checksum
    ),
    "image": st.tuples(st.just("image"), st.sampled_from(sorted(images())), edits) | st.tuples(st.just("image"), st.just("noise"), st.binary(max_size=200)),
}


def edited(data: bytes, edits: list[tuple]) -> bytes:
    data = bytearray(data)
    for kind, place, *values in edits:
        place %= max(1, len(data))
        if kind == "set":
            data[place : place + 1] = bytes(values)
        elif kind == "flip":
            data[place : place + 1] = bytes(byte ^ 1 << values[0] for byte in data[place : place + 1])
        elif kind == "number":
            number, order, size = values
            data[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, order)
        elif kind == "insert":
            data[place:place] = values[0]
        elif kind == "drop":
            del data[place : place + values[0]]
        elif kind == "copy":
            target = values[0] % max(1, len(data))
            data[target:target] = data[place : place + values[1]]
        elif kind == "cut":
            del data[place:]
    return bytes(data)


def zipped(pickle_edits: list[tuple], change: str, which: int) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(weights()["zip"]))
    entries = source.infolist()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer := io.BytesIO(), "w") as target:
        for i, entry in enumerate(entries):
            name, data = entry.filename, source.read(entry)
            if name.endswith("data.pkl"):
                data = edited(data, pickle_edits)
            if i == which % len(entries):
                if change == "leave out":
                    continue
                name = {"rename": name + "x", "foreign": "../" + name}.get(change, name)
                data = b"" if change == "empty" else data
                if change == "twice":
                    target.writestr(name, data[::-1])
            target.writestr(name, data, zipfile.ZIP_DEFLATED if change == "deflate" else zipfile.ZIP_STORED)
    return buffer.getvalue()


def run_case(case: tuple, folder: Path) -> bool:
    """Read what the case describes; returns whether it was accepted, raises whatever should not be raised."""
    kind, *rest = case
    try:
        if kind == "data":
            raw = folder / "MNIST/raw"
            raw.mkdir(parents=True, exist_ok=True)
            contents = idx((3, 28, 28), bytes(range(256)) * 9 + bytes(48)), idx((3,), bytes([0, 5, 9]))
            for name, content, changes in zip(predict.FILES["test"], contents, rest):
                (raw / name).write_bytes(edited(content, changes))
            read, labels = predict.load(folder, "test")
            assert read.dtype == labels.dtype == torch.uint8 and read.shape == (len(labels), 28, 28) and len(labels) and labels.max() <= 9
        elif kind == "weights":
            path = folder / "w.pt"
            path.write_bytes(zipped(rest[1], *rest[2]) if rest[0] == "records" else edited(weights()[rest[0]], rest[1]))
            model = predict.load_weights(str(path))
            assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        else:
            path = folder / "image"
            path.write_bytes(rest[1] if rest[0] == "noise" else edited(images()[rest[0]], rest[1]))
            seen = predict.read_image(str(path))
            assert seen.dtype == torch.uint8 and seen.shape == (28, 28)
    except predict.Error as error:
        assert str(error)
        return False
    return True


# %% Running them, in a child process that may crash


def fuzz(kind: str, number: int, first: int, shared: mmap.mmap, folder: Path) -> None:
    """In the child: `number` cases of a kind; the case at work stands in `shared` for the one who finds the body."""
    accepted = ran = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @seed(first)
    @settings(max_examples=number, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(cases[kind])
    def check(case):
        nonlocal accepted, ran
        ran += 1
        text = repr(case).encode()
        shared[: len(text) + 1] = text + b"\0"
        signal.alarm(SECONDS)  # kills, also in the middle of C code
        accepted += run_case(case, folder)
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < MEGABYTES, f"it took {grown:.0f} MB"

    with warnings.catch_warnings(action="ignore"):
        check()
    print(f"{kind}: {ran:,} cases, {accepted:,} of them read", flush=True)


def in_a_child(function, *arguments) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        sys.stderr = open(os.dup(2), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes a line for each fault that it finds
        try:
            torch.set_num_threads(1)
            function(*arguments)
            status = 0
        except Exception:  # any: to report it is this program's purpose
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), metavar="N", help="of the cases (default: a random one)")
    parser.add_argument("--repeat", metavar="CASE", help="run this one case again")
    args = parser.parse_args()
    started = time.monotonic()
    shared = mmap.mmap(-1, 1 << 20)
    with tempfile.TemporaryDirectory() as folder:
        if args.repeat:
            sys.exit(in_a_child(lambda: print("read" if run_case(ast.literal_eval(args.repeat), Path(folder)) else "refused")))
        for i, kind in enumerate(cases):
            number = (args.cases + i) // len(cases)
            status = in_a_child(fuzz, kind, number, args.seed, shared, Path(folder))
            if status:
                how = {-signal.SIGALRM: f"took more than {SECONDS} s"}.get(status, f"crashed with signal {-status}" if status < 0 else "failed")
                case = shared[:].split(b"\0")[0].decode()
                sys.exit(f"a case {how}; again: uv run tests/fuzz.py --repeat {case!r}")
    print(f"{args.cases:,} cases with seed {args.seed} in {time.monotonic() - started:.0f} s: nothing but what was to be expected")


if __name__ == "__main__":
    main()
