"""Where the images come from: a folder of the user's, plain or .gz; torchvision's download; the sample."""

import gzip
import hashlib
import json
import sys

import pytest
from conftest import FILES, OFFLINE, SAMPLE, assert_one_error_line, driver, files_below, idx, run, uv_run

PIXELS = bytes(i % 251 for i in range(3 * 784))
IMAGES, LABELS = idx((3, 28, 28), PIXELS), idx((3,), bytes([9, 0, 5]))


def write_test_split(folder, images: bytes, labels: bytes, suffix: str) -> None:
    (raw := folder / "MNIST/raw").mkdir(parents=True)
    (raw / f"{FILES[2]}{suffix}").write_bytes(images)
    (raw / f"{FILES[3]}{suffix}").write_bytes(labels)


def test_load(train):
    images, labels = train.load(SAMPLE, "train")
    assert images.shape == (4000, 28, 28) and labels.bincount().tolist() == [400] * 10
    test_images, test_labels = train.load(SAMPLE, "test")
    assert test_images.shape == (1000, 28, 28) and test_labels.bincount().tolist() == [100] * 10
    assert not {bytes(image.numpy()) for image in images} & {bytes(image.numpy()) for image in test_images}


DAMAGED = {  # (images, labels, the suffix of both)
    "empty": (b"", b"", ""),
    "no images": (idx((0, 28, 28), b""), idx((0,), b""), ""),
    "cut off": (IMAGES[:-1], LABELS, ""),
    "a label more": (IMAGES, idx((4,), bytes([9, 0, 5, 0])), ""),
    "label 10": (IMAGES, idx((3,), bytes([9, 0, 10])), ""),
    "gz cut off": (gzip.compress(IMAGES)[:-9], gzip.compress(LABELS), ".gz"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_an_error(case, train, tmp_path):
    write_test_split(tmp_path, *DAMAGED[case])
    with pytest.raises(train.Error, match=f"{FILES[2]} and {FILES[3]}"):
        train.load(tmp_path, "test")


def test_a_folder_of_the_users_is_read_as_it_is(trained, tmp_path):
    """Plain or .gz; nothing is downloaded beside its files, what is missing is named by path."""
    packed = [gzip.compress((SAMPLE / "MNIST/raw" / name).read_bytes()) for name in FILES[2:]]
    write_test_split(tmp_path / "fashion", *packed, ".gz")
    options = ["--data-dir", "fashion", "--weights", trained.weights]
    result = uv_run("predict.py", *options, cwd=tmp_path)
    *_, accuracy = trained.stdout.splitlines()
    assert result.stdout == accuracy.replace("the sample", "fashion") + "\n", result.stderr
    (tmp_path / "fashion/MNIST/raw" / f"{FILES[3]}.gz").unlink()
    for script, first in (("train.py", FILES[0]), ("predict.py", FILES[2])):
        result = uv_run(script, *options, cwd=tmp_path, env=OFFLINE)
        assert_one_error_line(result, f"fashion/MNIST/raw/{first} and ", "No such file")
    assert files_below(tmp_path) == {f"{FILES[2]}.gz"} and "delete" not in result.stderr


@pytest.fixture
def mirror(server):
    """The sample, gzipped, on a server; `code` makes it torchvision's mirror, after one that is dead."""
    resources = []
    for name in FILES:
        data = gzip.compress((SAMPLE / "MNIST/raw" / name).read_bytes(), 1)
        server.answers[f"/{name}.gz"] = data
        resources.append((f"{name}.gz", hashlib.md5(data).hexdigest()))
    server.code = f"""from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = ["http://127.0.0.1:9/", {server.url!r}], {resources}"""
    return server


@pytest.mark.parametrize("data_dir", ["data/mnist", "new"])
def test_download_then_no_network(data_dir, mirror, tmp_path):
    """Into the default folder, where one was cut off, or a new one; once. stdout holds the result alone."""
    raw = tmp_path / data_dir / "MNIST/raw"
    if data_dir == "data/mnist":
        raw.mkdir(parents=True)
        (raw / f"{FILES[0]}.gz").write_bytes(mirror.answers[f"/{FILES[0]}.gz"][:1000])
    options = ["--epochs", 0.1, "--json", "--data-dir", data_dir]
    result = run(sys.executable, driver(tmp_path, mirror.code), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["dataset"] == {"data/mnist": "mnist"}.get(data_dir, data_dir)
    assert all((raw / name).read_bytes() == (SAMPLE / "MNIST/raw" / name).read_bytes() for name in FILES)
    again = uv_run("predict.py", "--data-dir", data_dir, cwd=tmp_path, env=OFFLINE)
    assert again.returncode == 0 and "Accuracy" in again.stdout, again.stderr


def test_no_network_and_no_sample_is_an_error(trained, tmp_path):
    # The trained network's folder has the sample, which is not for those who name another folder.
    for data_dir, folder in (("data/mnist", tmp_path), (tmp_path / "new", trained.folder)):
        result = uv_run("train.py", "--data-dir", data_dir, cwd=folder, env=OFFLINE)
        assert_one_error_line(result, f"cannot download MNIST into {data_dir}; copy it there", "refused")
