"""Where the digits come from: folders as people have them, the download, the sample."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    FILES,
    NOWHERE,
    OFFLINE,
    SAMPLE,
    assert_one_error_line,
    driver,
    files_below,
    idx,
    run,
    uv_run,
)

PIXELS = bytes(i % 251 for i in range(3 * 784))
IMAGES, LABELS = idx((3, 28, 28), PIXELS), idx((3,), bytes([9, 0, 5]))
OTHER_LABELS = idx((3,), bytes([1, 2, 3]))
PACKED_IMAGES, PACKED_LABELS = gzip.compress(IMAGES), gzip.compress(LABELS)
A, B = FILES[2:]  # the test split's
A_DOT, B_DOT = "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"  # on Kaggle


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# %% Folders
FOUND = {  # files below the folder
    "flat": {A: IMAGES, B: LABELS},
    "torchvision's": {f"MNIST/raw/{A}": IMAGES, f"MNIST/raw/{B}": LABELS},
    "deep and apart": {f"a/b/c/d/e/f/{A}": IMAGES, f"g/{B}": LABELS},
    "packed": {f"{A}.gz": PACKED_IMAGES, f"{B}.gz": PACKED_LABELS},
    "one packed": {f"{A}.gz": PACKED_IMAGES, B: LABELS},
    "unpacked by the browser": {f"{A}.gz": IMAGES, B: LABELS},
    "dot": {A_DOT: IMAGES, B_DOT: LABELS},
    "dot, packed": {f"{A_DOT}.gz": PACKED_IMAGES, B_DOT: LABELS},
    "Kaggle's folders": {f"{A_DOT}/{A_DOT}": IMAGES, f"{B_DOT}/{B_DOT}": LABELS},
    "Kaggle's both": {
        A_DOT: IMAGES,
        f"{A}/{A}": IMAGES,
        B_DOT: LABELS,
        f"{B}/{B}": LABELS,
    },
    "packed beside plain": {
        A: IMAGES,
        f"{A}.gz": PACKED_IMAGES,
        B: LABELS,
        f"{B}.gz": PACKED_LABELS,
    },
    "packed twice, differently": {
        f"{A}.gz": PACKED_IMAGES,
        f"again/{A}.gz": gzip.compress(IMAGES, 1),
        B: LABELS,
    },
    "beside others": {
        A: IMAGES,
        B: LABELS,
        f"._{A}": b"from a Mac",
        f"old-{A}": b"",
        f"{A}.zip": b"",
        "train.csv": b"",
    },
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case, train, tmp_path):
    write(tmp_path, FOUND[case])
    images, labels = train.load(tmp_path, "test")
    assert images.dtype == labels.dtype == torch.uint8
    assert images.shape == (3, 28, 28) and bytes(images.flatten()) == PIXELS
    assert labels.tolist() == [9, 0, 5]


@pytest.mark.parametrize("link", ["the folder", "a folder in it", "loops in it"])
def test_links(link, train, tmp_path, monkeypatch):
    """They are followed, and nothing is downloaded beside them."""
    folder, elsewhere = tmp_path / "data/mnist", tmp_path / "elsewhere"
    if link == "the folder":
        write(elsewhere, FOUND["torchvision's"])
        folder.parent.mkdir()
        folder.symlink_to(elsewhere)
    elif link == "a folder in it":
        write(elsewhere, FOUND["flat"])
        folder.mkdir(parents=True)
        (folder / "MNIST").symlink_to(elsewhere)
    else:  # a walk without end would try 2 ** 40 paths
        write(folder, FOUND["flat"])
        for name in ("loop", "another"):
            (folder / name).symlink_to(".")
    assert train.load(folder, "test").labels.tolist() == [9, 0, 5]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", NOWHERE)
    monkeypatch.setenv("http_proxy", NOWHERE)
    assert train.find_data(Path("data/mnist")) == Path("data/mnist")


NO_IMAGES = f"data has no {A}, plain or .gz (CSV and Parquet are not read)"
REFUSED = {  # files below the folder, words of the error
    "nothing": ({}, [f"{NO_IMAGES}, but nothing"]),
    "CSV": ({"train.csv": b"", "test.csv": b""}, [f"{NO_IMAGES}, but test.csv, train"]),
    "Parquet": ({"mnist/0.parquet": b""}, [f"{NO_IMAGES}, but mnist"]),
    "many others": ({f"{i}.png": b"" for i in range(9)}, ["0.png, 1.png", "4.png\n"]),
    "the other split": ({FILES[0]: IMAGES, FILES[1]: LABELS}, [NO_IMAGES, FILES[0]]),
    "no labels": ({A: IMAGES}, [f"data has no {B}, ", f"but {A}\n"]),
    "two that differ": (
        {A: IMAGES, f"mnist/{B}": LABELS, f"fashion/{B}": OTHER_LABELS},
        [f"data/mnist/{B}", f"data/fashion/{B}", " and ", "differ", "remove"],
    ),
    "dash and dot differ": (
        {A: IMAGES, B: LABELS, B_DOT: OTHER_LABELS},
        [f"data/{B}", f"data/{B_DOT}", "differ"],
    ),
    "plain and packed differ": (
        {A: IMAGES, B: LABELS, f"{B}.gz": gzip.compress(OTHER_LABELS)},
        [f"data/{B} and data/{B}.gz differ"],
    ),
    "empty": ({A: b"", B: b""}, [f"data/{A}"]),
    "no digits": ({A: idx((0, 28, 28), b""), B: idx((0,), b"")}, [f"data/{A}"]),
    "cut off": ({A: IMAGES[:-1], B: LABELS}, [f"data/{A}", "damaged"]),
    "packed, cut off": ({f"{A}.gz": PACKED_IMAGES[:-9], B: LABELS}, [f"data/{A}.gz"]),
    "packed, changed": (
        {f"{A}.gz": PACKED_IMAGES[:-8] + bytes(8), B: LABELS},
        [f"data/{A}.gz"],
    ),
    "a label more": ({A: IMAGES, B: LABELS + b"0"}, ["data", "3 images", "4 labels"]),
    "label 10": ({A: IMAGES, B: LABELS[:-1] + b"\n"}, ["data", "up to 10"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, words = REFUSED[case]
    write(Path("data"), files)
    with pytest.raises(train.Error) as caught:
        train.load(Path("data"), "test")
    message = f"{caught.value}\n"
    assert all(word in message for word in words), message


def test_a_named_folder_is_read_as_it_is(trained, tmp_path):
    """Nothing is downloaded into it, and the sample does not take its place."""
    raw = SAMPLE / "MNIST/raw"
    write(tmp_path / "mine", {name: (raw / name).read_bytes() for name in (A, B)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(SAMPLE)
    options = ["--data-dir", "mine", "--weights", trained.weights]
    result = uv_run("predict.py", *options, cwd=tmp_path, env=OFFLINE)
    [*_, accuracy] = trained.stdout.splitlines()
    assert result.stdout == accuracy.replace("data/sample", "mine") + "\n", (
        result.stderr
    )
    for folder, words in (("mine", f"mine has no {FILES[0]}"), ("none", "'none'")):
        result = uv_run("train.py", "--data-dir", folder, cwd=tmp_path, env=OFFLINE)
        assert_one_error_line(result, words)
        assert "download" not in result.stderr
    assert files_below(tmp_path) == {A, B}


# %% Download
DOWNLOADS = {  # what lies in data/mnist before
    "first": {},
    "interrupted": {
        f"MNIST/raw/{FILES[0]}": b"cut off while unpacking",
        f"MNIST/raw/{FILES[1]}.gz": b"cut off while loading",
    },
}


@pytest.mark.parametrize("case", DOWNLOADS)
def test_download(case, mirror, train, tmp_path, monkeypatch):
    """Once, also where it was interrupted. stdout holds the result alone."""
    write(tmp_path / "data/mnist", DOWNLOADS[case])
    command = [sys.executable, driver(tmp_path, mirror.code), "--epochs", 0.1, "--json"]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["data_dir"] == "data/mnist"
    for name in FILES:
        data = (SAMPLE / f"MNIST/raw/{name}").read_bytes()
        assert (tmp_path / f"data/mnist/MNIST/raw/{name}").read_bytes() == data
    assert set(mirror.requests) == set(mirror.answers)
    mirror.requests.clear()
    monkeypatch.chdir(tmp_path)
    assert train.find_data(Path("data/mnist")) == Path("data/mnist")
    assert not mirror.requests


def test_no_network_and_no_sample(tmp_path):
    result = uv_run("train.py", cwd=tmp_path, env=OFFLINE)
    assert_one_error_line(
        result, "cannot download MNIST into data/mnist", "copy its files"
    )


# %% The sample
def test_sample(train):
    """As many of each digit, no image in both halves."""
    images, labels = train.load(SAMPLE, "train")
    test_images, test_labels = train.load(SAMPLE, "test")
    assert labels.bincount().tolist() == [400] * 10
    assert test_labels.bincount().tolist() == [100] * 10
    assert not {bytes(x.flatten()) for x in images} & {
        bytes(x.flatten()) for x in test_images
    }


def test_sample_is_made_again_byte_for_byte(tmp_path):
    assert uv_run("data/make_sample.py", "made", cwd=tmp_path).returncode == 0
    for name in FILES:
        made = (tmp_path / f"made/MNIST/raw/{name}").read_bytes()
        assert made == (SAMPLE / f"MNIST/raw/{name}").read_bytes()
