"""Where the images come from: a folder of the user's, plain or .gz; torchvision's download; the sample."""

import gzip
import hashlib
import json
import shutil
import sys

import pytest
from conftest import FILES, OFFLINE, SAMPLE, assert_one_error_line, driver, files_below, idx, last_line, run, uv_run

PIXELS, DIGITS = bytes(i % 251 for i in range(3 * 784)), bytes([9, 0, 5])


def write_test_split(folder, images: bytes, labels: bytes, suffix: str = "") -> None:
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{FILES[2]}{suffix}").write_bytes(images)
    (raw / f"{FILES[3]}{suffix}").write_bytes(labels)


def test_load(train):
    images, labels = train.load(SAMPLE, "train")
    assert images.shape == (4000, 28, 28) and labels.bincount().tolist() == [400] * 10
    test_images, test_labels = train.load(SAMPLE, "test")
    assert test_images.shape == (1000, 28, 28) and test_labels.bincount().tolist() == [100] * 10
    assert not {bytes(image.numpy()) for image in images} & {bytes(image.numpy()) for image in test_images}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_load_reads_plain_and_packed_files(pack, train, tmp_path):
    files = pack(idx((3, 28, 28), PIXELS)), pack(idx((3,), DIGITS))
    write_test_split(tmp_path, *files, suffix="" if pack is bytes else ".gz")
    images, labels = train.load(tmp_path, "test")
    assert bytes(images.numpy()) == PIXELS and images.shape == (3, 28, 28) and labels.tolist() == [9, 0, 5]


DAMAGED = {  # (images, labels, the suffix of both)
    "empty": (b"", b"", ""),
    "no images": (idx((0, 28, 28), b""), idx((0,), b""), ""),
    "cut off": (idx((3, 28, 28), PIXELS[:-1]), idx((3,), DIGITS), ""),
    "too long": (idx((3, 28, 28), PIXELS + b"\0"), idx((3,), DIGITS), ""),
    "a label more": (idx((3, 28, 28), PIXELS), idx((4,), DIGITS + b"\0"), ""),
    "label 10": (idx((3, 28, 28), PIXELS), idx((3,), bytes([9, 0, 10])), ""),
    "gz cut off": (gzip.compress(idx((3, 28, 28), PIXELS))[:-9], gzip.compress(idx((3,), DIGITS)), ".gz"),
    "not gz": (idx((3, 28, 28), PIXELS), idx((3,), DIGITS), ".gz"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_an_error(case, train, tmp_path):
    write_test_split(tmp_path, *DAMAGED[case])
    with pytest.raises(train.Error, match=f"{FILES[2]} and {FILES[3]}"):
        train.load(tmp_path, "test")


def test_a_folder_of_the_users_is_read_as_it_is(trained, tmp_path):
    """Nothing is downloaded beside its files, what is missing is named by path, and the last line names the folder."""
    write_test_split(tmp_path / "fashion", *(gzip.compress((SAMPLE / "MNIST/raw" / name).read_bytes()) for name in FILES[2:]), ".gz")
    options = ["--data-dir", "fashion", "--weights", trained.weights]
    result = uv_run("predict.py", *options, cwd=tmp_path)
    assert last_line(result.stdout).startswith("Accuracy of SimpleCNN on the 1,000 test images of fashion: "), result.stderr
    result = uv_run("train.py", *options, cwd=tmp_path)
    assert_one_error_line(result, f"fashion/MNIST/raw/{FILES[0]} and {FILES[1]}", "No such file")
    (tmp_path / "fashion/MNIST/raw" / f"{FILES[3]}.gz").unlink()
    for script, first in (("train.py", FILES[0]), ("predict.py", FILES[2])):
        result = uv_run(script, *options, cwd=tmp_path, env=OFFLINE)
        assert_one_error_line(result, f"fashion/MNIST/raw/{first} and ", "No such file")
    assert files_below(tmp_path) == {f"{FILES[2]}.gz"} and "delete" not in result.stderr


@pytest.fixture
def mirror(server):
    """The sample, gzipped, on a server, and `code` that makes it torchvision's mirror, after one that is dead."""
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
    """Into the default folder or one that is not there. stdout holds nothing but the result, and one download serves."""
    command = [sys.executable, driver(tmp_path, mirror.code), "--epochs", 0.1, "--json", "--data-dir", data_dir]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["dataset"] == {"data/mnist": "mnist"}.get(data_dir, data_dir)
    assert {*FILES, "mnist_cnn.pt"} < files_below(tmp_path)
    again = uv_run("predict.py", "--data-dir", data_dir, cwd=tmp_path, env=OFFLINE)
    assert again.returncode == 0 and "Accuracy" in again.stdout, again.stderr


def test_a_download_that_was_cut_off_goes_on(mirror, tmp_path):
    """In the default folder, after a process was killed: torchvision checks what is there by its MD5."""
    raw = tmp_path / "data/mnist/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / f"{FILES[0]}.gz").write_bytes(mirror.answers[f"/{FILES[0]}.gz"][:1000])
    result = run(sys.executable, driver(tmp_path, mirror.code), "--epochs", 0.1, cwd=tmp_path)
    assert result.returncode == 0 and (raw / FILES[0]).read_bytes() == (SAMPLE / "MNIST/raw" / FILES[0]).read_bytes()


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_no_network_and_no_sample_is_an_error(script, trained, tmp_path):
    shutil.copy(trained.weights, tmp_path / "w.pt")
    for data_dir in ("data/mnist", "elsewhere"):
        result = uv_run(script, "--weights", "w.pt", "--data-dir", data_dir, cwd=tmp_path, env=OFFLINE)
        assert_one_error_line(result, f"cannot download MNIST into {data_dir}", "copy it there", "Connection refused")
        (tmp_path / "data").mkdir(exist_ok=True)
        if data_dir == "data/mnist":
            (tmp_path / "data/sample").symlink_to(SAMPLE)  # not for those who name a folder
    assert (tmp_path / "w.pt").read_bytes() == trained.weights.read_bytes()
