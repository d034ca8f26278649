"""Where the digits come from: folders as people have them, the download, the sample."""

import gzip
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    FILES,
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
OTHERS = idx((3,), bytes([1, 2, 3]))
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
    "dot": {A_DOT: IMAGES, B_DOT: LABELS},
    "dot, packed": {f"{A_DOT}.gz": PACKED_IMAGES, B_DOT: LABELS},
    "Kaggle's": {A_DOT: IMAGES, f"{A}/{A}": IMAGES, B_DOT: LABELS, f"{B}/{B}": LABELS},
    "the nearest": {A: IMAGES, B: LABELS, f"a/{A}": b"", f"a/{B}": OTHERS},
    "plain beside packed": {A: IMAGES, f"{A}.gz": b"", B: LABELS, f"{B}.gz": b""},
    "beside others": {
        A: IMAGES,
        B: LABELS,
        f"._{A}": b"",
        f"old-{A}": b"",
        "x.csv": b"",
    },
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case, train, tmp_path):
    write(tmp_path, FOUND[case])
    images, labels = train.load(tmp_path, "test")
    assert images.dtype == labels.dtype == torch.uint8
    assert images.shape == (3, 28, 28) and bytes(images.flatten()) == PIXELS
    assert labels.tolist() == [9, 0, 5]


NO_IMAGES = f"data has no {A}, plain or .gz"
REFUSED = {  # files below the folder, words of the error
    "nothing": ({}, [NO_IMAGES]),
    "CSV": ({"train.csv": b"", "test.csv": b""}, [NO_IMAGES]),
    "the other split": ({FILES[0]: IMAGES, FILES[1]: LABELS}, [NO_IMAGES]),
    "no labels": ({A: IMAGES}, [f"data has no {B}, "]),
    "two as near": (
        {A: IMAGES, f"mnist/raw/{B}": LABELS, f"fashion/raw/{B}": OTHERS},
        [f"data/mnist/raw/{B}", f"data/fashion/raw/{B}", "name one of"],
    ),
    "empty": ({A: b"", B: b""}, [f"data/{A} is damaged"]),
    "no digits": ({A: idx((0, 28, 28), b""), B: idx((0,), b"")}, [f"data/{A}"]),
    "cut off": ({A: IMAGES[:-1], B: LABELS}, [f"data/{A} is damaged, remove it"]),
    "packed, cut off": ({f"{A}.gz": PACKED_IMAGES[:-9], B: LABELS}, [f"data/{A}.gz"]),
    "packed, changed": ({f"{A}.gz": PACKED_IMAGES[:-8] + bytes(8)}, [f"data/{A}.gz"]),
    "a label more": ({A: IMAGES, B: LABELS + b"0"}, ["data: test images and labels"]),
    "label 10": ({A: IMAGES, B: LABELS[:-1] + b"\n"}, ["data: test images and labels"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, words = REFUSED[case]
    write(Path("data"), files)
    with pytest.raises(train.Error) as caught:
        train.load(Path("data"), "test")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_named_folder_is_read_as_it_is(trained, tmp_path):
    """Nothing is downloaded into it, and the sample does not take its place."""
    raw = SAMPLE / "MNIST/raw"
    write(tmp_path / "mine", {name: (raw / name).read_bytes() for name in (A, B)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(SAMPLE)
    for folder in ("mine", "none"):
        result = uv_run("train.py", "--data-dir", folder, cwd=tmp_path, env=OFFLINE)
        assert_one_error_line(result, f"{folder} has no {FILES[0]}")
        assert "download" not in result.stderr
    assert files_below(tmp_path) == {A, B}


def test_home_is_expanded(train, predict, trained, tmp_path, monkeypatch):
    """A shell leaves the ~ in `--data-dir=~/mine`."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for script in (train, predict):
        with pytest.raises(script.Error, match="mine has no ") as caught:
            script.main(["--data-dir=~/mine", f"--weights={trained.weights}"])
        assert str(caught.value).startswith(str(tmp_path))


# %% Download
CUT_OFF = {  # files that an interrupted download leaves
    f"MNIST/raw/{FILES[0]}": b"cut off while unpacking",
    f"MNIST/raw/{FILES[1]}.gz": b"cut off while loading",
}


@pytest.mark.parametrize("before", [{}, CUT_OFF], ids=["first", "interrupted"])
def test_download(before, mirror, train, tmp_path, monkeypatch):
    """Once, also where it was interrupted."""
    write(tmp_path / "data/mnist", before)
    code = f"import atexit, socket\n{mirror.code}\n"
    code += "atexit.register(lambda: print(socket.getdefaulttimeout()))"
    command = [sys.executable, driver(tmp_path, code), "--epochs", 0.1]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the 1,000 test images: " in result.stdout
    assert result.stdout.endswith("\nNone\n"), "the timeout is that of before"
    for name in FILES:
        file = f"MNIST/raw/{name}"
        data = (tmp_path / "data/mnist" / file).read_bytes()
        assert data == (SAMPLE / file).read_bytes()
    assert set(mirror.requests) == set(mirror.answers)
    mirror.requests.clear()
    monkeypatch.chdir(tmp_path)
    assert train.find_data(Path("data/mnist")) == Path("data/mnist")
    assert not mirror.requests


def test_no_network_and_no_sample(tmp_path):
    result = uv_run("train.py", cwd=tmp_path, env=OFFLINE)
    assert_one_error_line(result, "cannot download MNIST into data/mnist", "copy its")


# %% The sample
def test_the_sample_is_said_to_be_among_the_training_images(trained, tmp_path):
    """Under any name that leads there; a copy of a user's own is the user's."""
    (tmp_path / "link").symlink_to(SAMPLE)
    shutil.copytree(SAMPLE, tmp_path / "copy")
    for folder, words in (
        ("link", "1,000 digits of link, which are among MNIST's training images: "),
        ("copy", "1,000 test images of copy: "),
    ):
        options = ["--data-dir", folder, "--weights", trained.weights]
        assert words in uv_run("predict.py", *options, cwd=tmp_path).stdout


def test_sample_is_made_again_byte_for_byte(tmp_path):
    assert uv_run("data/make_sample.py", "made", cwd=tmp_path).returncode == 0
    for name in FILES:
        made = (tmp_path / f"made/MNIST/raw/{name}").read_bytes()
        assert made == (SAMPLE / f"MNIST/raw/{name}").read_bytes()
