"""Faults: one clear line, the right status, older files as they were, and nothing stray beside them."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import pty
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENV, REPO, SAMPLE, assert_one_error_line, run
from PIL import Image

FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
OLD = b"the old weights"
QUICK = ["--device", "cpu", "--epochs", 1, "--batch-size", 16]
LONG = ["--device", "cpu", "--epochs", 9999, "--batch-size", 16]
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting takes root and unshare")


def idx(shape, data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


def make_data(folder: Path) -> Path:
    """MNIST's four files with 32 training and 32 test images of noise."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for i in (0, 2):
        (raw / FILES[i]).write_bytes(idx((32, 28, 28), random.Random(i).randbytes(32 * 784)))
        (raw / FILES[i + 1]).write_bytes(idx((32,), bytes(k % 10 for k in range(32))))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def good(train, tmp_path_factory):
    """Weights of an untrained network."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("good") / "good.pt"
    train.save(train.SimpleCNN(), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with old weights in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(OLD)
    return tmp_path


def words(arguments) -> list[str]:
    return [str(word) for word in arguments]


def fails(script, *arguments) -> str:
    """Run `main` in this process; returns the one line that it ends with, at status 1."""
    with pytest.raises(SystemExit) as caught:
        script.main(words(arguments))
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ") and len(message.splitlines()) == 1, message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(*command, cwd, env=(), **options) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(words(command), cwd=cwd, env=ENV | dict(env), **options)


def as_another_user(function) -> str:
    """What `function` returns, or the exit message it ends with, in a child process that root's powers do not help."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP does not survive a fork
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                answer = str(function())
            except SystemExit as exit:
                answer = str(exit.code)
            os.write(write_end, answer.encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def open_folder():
    """A folder that any user may enter and write to; pytest's own are for root alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


# Weights


class Code:
    """A pickle of it makes a folder when it is read without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def with_first(state, name, value):
    return {**state, name: value(state[name])}


def spoilt(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


OTHERS = {  # fault: (the change to the state_dict, words of the error)
    "missing key": (lambda s: {k: v for k, v in s.items() if k != "conv2.bias"}, ["conv2.bias is missing"]),
    "extra key": (lambda s: {**s, "fc3.bias": torch.zeros(1)}, ["fc3.bias is not in SimpleCNN"]),
    "key of two lines": (lambda s: {**s, "a\nb": torch.zeros(1)}, ["a b is not in SimpleCNN"]),
    "wrong shape": (lambda s: with_first(s, "fc1.bias", lambda t: t[:64].clone()), ["fc1.bias", "(64,)", "(128,)"]),
    "wrong dtype": (lambda s: with_first(s, "fc2.weight", lambda t: t.half()), ["fc2.weight", "float16", "float32"]),
    "no tensor": (lambda s: with_first(s, "conv1.bias", lambda t: t.tolist()), ["conv1.bias", "list"]),
    "sparse": (lambda s: with_first(s, "fc2.weight", lambda t: t.to_sparse()), ["fc2.weight", "sparse"]),
    "without data": (lambda s: with_first(s, "fc2.weight", lambda t: t.to("meta")), ["fc2.weight", "meta"]),
    "NaN": (lambda s: with_first(s, "conv2.weight", spoilt(float("nan"))), ["conv2.weight", "NaN"]),
    "inf": (lambda s: with_first(s, "fc2.bias", spoilt(float("inf"))), ["fc2.bias", "infinity"]),
    "a list": (lambda s: list(s.values()), ["holds a list", "state_dict"]),
    "nested": (lambda s: {"model": s}, ["conv1.weight is missing"]),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_weights_of_another_network(fault, predict, good, here):
    change, expected = OTHERS[fault]
    state = change(torch.load(good, weights_only=True))
    for zipped in (True, False) if fault != "without data" else (True,):  # the old format cannot hold that
        torch.save(state, "other.pt", _use_new_zipfile_serialization=zipped)
        message = fails(predict, "--weights", "other.pt", "x.png")
        assert all(word in message for word in ["other.pt", *expected]), message


def test_weights_that_are_no_weights(predict, train, good, here):
    whole = good.read_bytes()
    torch.save(torch.nn.Sequential(train.SimpleCNN().fc2), "model.pt")
    broken = {"empty": b"", "cut": whole[:-1], "half": whole[: len(whole) // 2], "short": whole[:100], "zip": b"PK\3\4", "text": b"hello\n",
              "json": b'{"a": 1}', "zeros": bytes(5000), "pickle": pickle.dumps({"a": 1}), "html": b"<html>Log in</html>",
              "model": Path("model.pt").read_bytes(), "flipped": whole[:-60] + bytes([whole[-60] ^ 255]) + whole[-59:]}  # fmt: skip
    for name, data in broken.items():
        Path(f"{name}.pt").write_bytes(data)
        message = fails(predict, "--weights", f"{name}.pt", "x.png")
        assert f"{name}.pt" in message and "uv run train.py" in message, message
    assert "uv run train.py" in fails(predict, "--weights", "nowhere/w.pt", "x.png")
    assert "cannot read" in fails(predict, "--weights", ".", "x.png")


def test_weights_that_may_not_be_read(predict, good, open_folder):
    path = open_folder / "w.pt"
    path.write_bytes(good.read_bytes())
    path.chmod(0o644)
    assert as_another_user(lambda: predict.load_weights(str(path))).startswith("SimpleCNN")
    path.chmod(0)
    message = as_another_user(lambda: predict.main(["--weights", str(path), "x.png"]))
    assert message.startswith(f"error: cannot read the weights {path} (") and len(message.splitlines()) == 1, message


def test_code_in_weights_does_not_run(predict, good, here):
    state = torch.load(good, weights_only=True)
    for zipped in (True, False):
        for content in (Code(here / "ran"), {**state, "conv1.weight": Code(here / "ran")}):
            torch.save(content, "code.pt", _use_new_zipfile_serialization=zipped)
            assert "code.pt" in fails(predict, "--weights", "code.pt", "x.png")
    Path("code.pt").write_bytes(pickle.dumps(Code(here / "ran")))
    assert "code.pt" in fails(predict, "--weights", "code.pt", "x.png")
    assert not (here / "ran").exists()
    pickle.loads(Path("code.pt").read_bytes())
    assert (here / "ran").is_dir()  # it would have


def test_half_weights_from_a_url_are_not_kept(predict, good, server, here, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here / "hub"))
    whole = good.read_bytes()

    def cut_off(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[:70_000])

    def no_http(handler):
        handler.wfile.write(b"hello")

    other = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, other)
    for answer in (cut_off, b"<html>Log in</html>", no_http, other.getvalue(), None):
        server.answers["/w.pt"] = answer
        assert f"{server.url}w.pt" in fails(predict, "--weights", f"{server.url}w.pt", "x.png")
        assert not [path for path in here.rglob("*") if path.is_file() and path.name != "w.pt"]
    server.answers["/w.pt"] = whole
    predict.load_weights(f"{server.url}w.pt")
    del server.answers["/w.pt"]
    predict.load_weights(f"{server.url}w.pt")  # from the cache


def test_weights_from_what_is_no_url(predict):
    for url in ("http://[::1/w.pt", "http://127.0.0.1:9/ä.pt", "http://a..b/w.pt", f"http://{'a' * 70}/w.pt"):
        assert url in fails(predict, "--weights", url, "x.png")


def test_weights_from_a_url_are_used_where_they_cannot_be_kept(predict, good, server, here, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here / "w.pt/hub"))  # below a file
    server.answers["/w.pt"] = good.read_bytes()
    state, kept = predict.load_weights(f"{server.url}w.pt").state_dict(), torch.load(good, weights_only=True)
    assert all(state[name].equal(kept[name]) for name in kept) and (here / "w.pt").read_bytes() == OLD


# Data

DAMAGED = {  # fault: (which of the four files, its new content from the old)
    "empty": (2, lambda data: b""),
    "truncated": (2, lambda data: data[:-1]),
    "truncated labels": (3, lambda data: data[:-1]),
    "longer": (2, lambda data: data + b"\0"),
    "magic number": (2, lambda data: b"\0\0\x09\3" + data[4:]),
    "still gzipped": (3, lambda data: gzip.compress(data)),
    "a page": (2, lambda data: b"<!DOCTYPE html><html>Log in</html>"),
    "fewer images than labels": (2, lambda data: idx((31, 28, 28), data[16:-784])),
    "more images than labels": (2, lambda data: idx((33, 28, 28), data[16:] + bytes(784))),
    "label 10": (3, lambda data: data[:-1] + b"\x0a"),
    "not 28x28": (2, lambda data: idx((32, 14, 56), data[16:])),
    "no images": (2, lambda data: idx((0, 28, 28), b"")),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_data(fault, train, predict, tiny, good, here):
    which, change = DAMAGED[fault]
    shutil.copytree(tiny, "data")
    for script, split, options in ((train, 0, QUICK), (train, 2, QUICK), (predict, 2, ["--weights", good])):
        name = FILES[which % 2 + split]
        path = here / "data/MNIST/raw" / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        options = options if script is predict else [*options, "--weights", "w.pt"]
        message = fails(script, "--data-dir", "data", *options)
        assert name in message and "run again" in message and "delete" in message, message
        path.write_bytes(whole)
    assert (here / "w.pt").read_bytes() == OLD and names(here) == ["data", "w.pt"]


def test_data_file_that_is_a_folder_or_not_readable(train, predict, good, open_folder):
    data = make_data(open_folder / "data")
    for path in (data, *data.rglob("*")):
        path.chmod(0o777)
    labels = data / "MNIST/raw" / FILES[3]
    labels.chmod(0)
    for script, weights in ((train, open_folder / "w.pt"), (predict, open_folder / "good.pt")):
        (open_folder / "good.pt").write_bytes(good.read_bytes())
        (open_folder / "good.pt").chmod(0o644)
        message = as_another_user(lambda: script.main(["--data-dir", str(data), "--weights", str(weights)]))
        assert message.startswith("error: ") and str(labels) in message and len(message.splitlines()) == 1, message
    labels.unlink()
    labels.mkdir()
    assert str(labels) in fails(train, "--data-dir", data, "--weights", open_folder / "w.pt")
    assert names(open_folder) == ["data", "good.pt"]


# Downloads


@pytest.fixture
def mirror(server, tiny, monkeypatch):
    """The tiny data on a server, and torchvision's sums for them; `use(mirrors)` sets the mirrors."""
    from torchvision.datasets import MNIST

    sums = []
    for path in (tiny / "MNIST/raw").iterdir():
        data = gzip.compress(path.read_bytes(), 1)
        server.answers[f"/{path.name}.gz"] = data
        sums.append((f"{path.name}.gz", hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", sums)
    server.use = lambda *mirrors: monkeypatch.setattr(MNIST, "mirrors", list(mirrors))
    server.sums = dict(sums)
    server.use(server.url)
    return server


def hang_up(handler):
    handler.connection.close()


def no_length(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(gzip.compress(b"x" * 5000)[:-9])


def no_http(handler):
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def too_little(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 5000)


ANSWERS = {"404": None, "hang up": hang_up, "half": no_length, "closed early": too_little, "no HTTP": no_http, "wrong MD5": gzip.compress(b"other"), "empty": b""}


@pytest.mark.parametrize("fault", ANSWERS)
def test_bad_mirror(fault, mirror, train, tiny, good, here, capsys):
    """Bad on the last file: the next mirror; where there is none the sample, or an error where the folder is named."""
    for name in FILES:
        mirror.answers[f"/bad/{name}.gz"] = mirror.answers[f"/{name}.gz"]
    mirror.answers[f"/bad/{FILES[3]}.gz"] = ANSWERS[fault]
    mirror.use(mirror.url + "bad/")
    message = fails(train, "--data-dir", "data", "--weights", "w.pt")
    assert f"{mirror.url}bad/{FILES[3]}.gz" in message and "no MNIST in data" in message, message
    assert names(here) == ["w.pt"] and (here / "w.pt").read_bytes() == OLD
    (here / "data").mkdir()
    (here / "data/sample").symlink_to(tiny)
    assert train.choose_data(None, ["train", "test"]) == train.SAMPLE and "using the sample" in capsys.readouterr().err
    assert names(here / "data") == ["sample"]
    mirror.use(mirror.url + "bad/", mirror.url)
    assert train.choose_data(None, ["train", "test"]) == Path("data/mnist")
    for name in FILES:
        assert (here / "data/mnist/MNIST/raw" / name).read_bytes() == (tiny / "MNIST/raw" / name).read_bytes()


def test_what_a_stopped_download_left_is_completed(mirror, train, tiny, here):
    raw = here / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / FILES[1]).write_bytes((tiny / "MNIST/raw" / FILES[1]).read_bytes())
    (raw / ".0123456789abcdef.tmp").write_bytes(b"half")
    train.choose_data(here / "data", ["train", "test"])
    assert len(mirror.requests) == 3
    assert train.load(here / "data", "train")[0].shape == (32, 28, 28)


def test_two_first_runs_download_at_once(mirror, train, predict, tiny, here):
    """Each waits in the middle of its first file for the other."""
    barrier = threading.Barrier(2, timeout=20)
    name = f"/{FILES[2]}.gz"
    data = mirror.answers[name]

    def together(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:1000])
        barrier.wait()
        handler.wfile.write(data[1000:])

    mirror.answers[name] = together
    failures = []

    def first_run(script):
        try:
            script.choose_data(here / "data", ["test"])
            script.load(here / "data", "test")
        except (script.Error, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=first_run, args=(script,)) for script in (train, predict)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert not failures and mirror.requests.count(name) == 2
    assert names(here / "data/MNIST/raw") == FILES[2:]
    for name in FILES[2:]:
        assert (here / "data/MNIST/raw" / name).read_bytes() == (tiny / "MNIST/raw" / name).read_bytes()


# Full disks, folders that cannot be written to


@contextmanager
def small_disk(size: int):
    """No file can grow beyond `size`: what a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_while_writing_weights(train, tiny, here):
    with small_disk(300_000):
        message = fails(train, "--data-dir", tiny, "--weights", "w.pt", *QUICK)
    assert os.strerror(errno.EFBIG) in message and "cannot write w.pt" in message
    assert names(here) == ["w.pt"] and (here / "w.pt").read_bytes() == OLD


def test_disk_full_while_writing_pictures(train, predict, tiny, good, here):
    for script, picture, options in ((train, "training.png", [*QUICK, "--weights", "new.pt"]), (predict, "errors.png", ["--weights", good])):
        (here / "plots").mkdir(exist_ok=True)
        for name in ("examples.png", "training.png", "confusion.png", "errors.png"):
            (here / "plots" / name).write_bytes(b"old")
        with small_disk(920_000 if script is train else 3_000), pytest.MonkeyPatch.context() as patch:
            if script is train:  # the weights fit, the pictures do not
                figure = SimpleNamespace(savefig=lambda file, **_: file.write(bytes(1_000_000)))
                patch.setattr(train, "draw", lambda *_: {"training.png": figure})
            message = fails(script, "--data-dir", tiny, "--plots", "plots", *options)
        assert os.strerror(errno.EFBIG) in message and "cannot write plots/" in message
        assert names(here / "plots") == ["confusion.png", "errors.png", "examples.png", "training.png"]
        assert all(path.read_bytes() == b"old" for path in (here / "plots").iterdir())


def test_disk_full_while_writing_data(mirror, train, tiny, here):
    """It is no reason to take the sample."""
    (here / "data").mkdir()
    (here / "data/sample").symlink_to(tiny)
    with small_disk(10_000):
        message = fails(train, "--weights", "w.pt", *QUICK)
    assert os.strerror(errno.EFBIG) in message and f"cannot write data/mnist/MNIST/raw/{FILES[0]}" in message
    assert not [path for path in (here / "data/mnist").rglob("*") if path.is_file()] and (here / "w.pt").read_bytes() == OLD


def test_disk_full_while_writing_requirements(tmp_path):
    for name in ("train.py", "predict.py", "export_requirements.py"):
        shutil.copy(REPO / name, tmp_path)
    (tmp_path / "requirements.txt").write_bytes(b"old\n")
    code = """
import resource, runpy, subprocess, sys
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # for the script, not for uv and its cache
run = subprocess.run
subprocess.run = lambda *args, **options: run(*args, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)), **options)
sys.argv = ["export_requirements.py"]
runpy.run_path("export_requirements.py", run_name="__main__")
"""
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert_one_error_line(result, "requirements.txt")
    assert (tmp_path / "requirements.txt").read_bytes() == b"old\n"
    assert names(tmp_path) == ["export_requirements.py", "predict.py", "requirements.txt", "train.py"]


@needs_root
def test_full_file_system_and_read_only_working_directory(tiny, good, tmp_path):
    """A tmpfs with room for the old weights but not for new ones beside them; then the same, read-only."""
    (tmp_path / "disk").mkdir()
    script = f"""set -e
mount -t tmpfs -o size=1200k none disk
cp {good} disk/w.pt
cd disk
s=0; {sys.executable} {REPO}/train.py --data-dir {tiny} --weights w.pt --epochs 1 --batch-size 16 >/dev/null || s=$?
ls -A >&2; cmp w.pt {good}
echo "status $s" >&2
mount -o remount,ro none "$PWD"
s=0; env -u HOME {sys.executable} {REPO}/train.py --data-dir {tiny} || s=$?
echo "status $s" >&2
exec env -u HOME {sys.executable} {REPO}/predict.py --data-dir {tiny} --weights w.pt --device cpu
"""
    result = run("unshare", "-m", "sh", "-c", script, cwd=tmp_path, env=ENV)
    if "unshare:" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"no mount here: {result.stderr.strip()}")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("step ")]
    assert len(lines) == 5 and result.returncode == 0, result.stderr
    assert lines[0].startswith("error: ") and os.strerror(errno.ENOSPC) in lines[0] and "w.pt" in lines[0]
    assert lines[1:3] == ["w.pt", "status 1"] and lines[4] == "status 1"
    assert lines[3].startswith("error: cannot write data/mnist_cnn.pt (") and "another place" in lines[3]
    assert re.search(r"(?m)^Accuracy of SimpleCNN on the 32 test images of .*: \d", result.stdout)


@pytest.fixture
def no_work(train, predict, monkeypatch):
    """A script that gets as far as its data fails the test."""

    def too_late(*_, **__):
        raise AssertionError("the data were asked for")

    for script in (train, predict):
        monkeypatch.setattr(script, "choose_data", too_late)


def test_bad_output_ends_before_training(train, predict, good, no_work, here):
    (here / "file").write_bytes(b"x")
    (here / "folder.pt").mkdir()
    os.mkfifo(here / "pipe")
    (here / "into").symlink_to(here / "file/w.pt")
    before = names(here)
    for weights in ("file/w.pt", "file/deep/er/w.pt", "folder.pt", "pipe", "/dev/null", "into", "a" * 300, "/"):
        message = fails(train, "--weights", weights)
        assert message.startswith(f"error: cannot write {weights} (") and "another place with --weights" in message, message
    for script in (train, predict):
        options = ["--weights", "w.pt" if script is train else good]
        for plots in ("file", "file/deep"):
            assert f"cannot write {plots}/" in fails(script, *options, "--plots", plots)
    assert names(here) == before and (here / "w.pt").read_bytes() == OLD
    assert not Path("/dev/null").is_file()
    for name in ("examples.png", "training.png"):
        (here / "plots" / name).mkdir(parents=True)
        assert f"cannot write plots/{name} (" in fails(train, "--weights", "w.pt", "--plots", "plots")
        (here / "plots" / name).rmdir()


def test_output_folder_that_may_not_be_written(train, predict, no_work, open_folder):
    closed = open_folder / "closed"
    closed.mkdir(mode=0o755)
    (open_folder / "link.pt").symlink_to(closed / "w.pt")
    for path in (closed / "w.pt", closed / "new/w.pt", open_folder / "link.pt"):
        message = as_another_user(lambda: train.main(["--weights", str(path)]))
        assert message.startswith(f"error: cannot write {path} (") and "another place with --weights" in message, message
    message = as_another_user(lambda: predict.main(["--plots", str(closed)]))
    assert message.startswith(f"error: cannot write {closed}/"), message


def test_output_folders_are_made_and_links_stay(train, tiny, here, capsys):
    (here / "elsewhere").mkdir()
    (here / "link.pt").symlink_to("elsewhere/w.pt")
    (here / "loop.pt").symlink_to("loop.pt")
    train.save(train.SimpleCNN(), here / "loop.pt")
    (here / "loop.pt").unlink()
    train.main(words(["--data-dir", tiny, "--weights", "link.pt", "--plots", "new/plots", *QUICK]))
    assert (here / "link.pt").is_symlink() and names(here / "elsewhere") == ["w.pt"]
    assert names(here / "new/plots") == ["examples.png", "training.png"]
    assert names(here) == ["elsewhere", "link.pt", "new", "w.pt"] and (here / "w.pt").read_bytes() == OLD


# Arguments


BAD = [*(["--epochs", value] for value in ("0", "-1", "nan", "inf", "1e99", "x")), *(["--batch-size", value] for value in ("0", "-5", "1.5", "999999999")),
       *(["--lr", value] for value in ("0", "-1", "nan", "inf")), ["--seed", "-1"], ["--seed", str(2**64)], ["--device", "abacus"], ["--what"]]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_arguments(arguments, train, no_work, here, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--weights", "w.pt", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and lines[0].startswith("usage:") and ": error: " in lines[-1] and arguments[0] in lines[-1]
    assert (here / "w.pt").read_bytes() == OLD


@pytest.mark.parametrize("arguments", [["--batch-size", "0"], ["--device", "abacus"], ["--csv"], ["--json", "--csv", "x"]], ids=" ".join)
def test_bad_arguments_to_predict(arguments, predict, no_work, capsys):
    with pytest.raises(SystemExit) as caught:
        predict.main(arguments)
    assert caught.value.code == 2 and ": error: " in capsys.readouterr().err.splitlines()[-1]


def test_device_that_is_not_there(train, predict, no_work, capsys):
    absent = next(name for name in ("cuda", "mps") if torch.accelerator.current_accelerator(True) != torch.device(name))
    for script in (train, predict):
        with pytest.raises(SystemExit) as caught:
            script.main(["--device", absent])
        message = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2 and f": error: no {absent} device here; run with --device " in message, message


def test_batch_larger_than_the_data(train, tiny, here):
    message = fails(train, "--data-dir", tiny, "--weights", "w.pt", "--batch-size", 33)
    assert "--batch-size 33" in message and "32 training images" in message and (here / "w.pt").read_bytes() == OLD
    with pytest.raises(train.Error, match="--batch-size 256 "):
        train.train(*train.load(tiny, "train"))


def test_loss_that_is_no_number_stops_at_once(train, tiny, here, capsys):
    message = fails(train, "--data-dir", tiny, "--weights", "w.pt", "--batch-size", 16, "--epochs", 50, "--lr", 1e9, "--device", "cpu")
    assert re.search(r"the loss is (nan|inf) at step \d; try a smaller --lr", message), message
    # After a single step the loss was still that of the new network.
    message = fails(train, "--data-dir", SAMPLE, "--weights", "w.pt", "--epochs", 0.001, "--lr", 1e9, "--device", "cpu")
    assert message == "error: the loss on the test images is no number; try a smaller --lr"
    assert (here / "w.pt").read_bytes() == OLD and names(here) == ["w.pt"]


# Signals

STUB = """
import sys, time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:  # real imports do this: C code in numpy and torch clears any exception
    pass
raise ImportError("the signal was swallowed")
"""


def ended_by(process: subprocess.Popen, number: int) -> str:
    out, err = process.communicate(timeout=60)
    lines = err.strip().splitlines()
    assert process.returncode == 128 + number, (process.returncode, err)
    assert lines[-1] == f"error: stopped by {signal.Signals(number).name}" and err.count("error: ") == 1 and "Traceback" not in err, err
    return err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
@pytest.mark.parametrize("command", [[sys.executable], ["uv", "run"]], ids=["python", "uv run"])
@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_stopped_at_start_up(script, command, number, tmp_path):
    """A torch that is slow to import stands in, and that swallows exceptions as the real one sometimes does."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(STUB)
    process = start(*command, REPO / script, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    ended_by(process, number)


def test_stopped_in_download(server, here):
    """Two files have come, the third stalls."""
    (here / "torchvision").mkdir()
    sums = {}
    for name in FILES:
        server.answers[f"/{name}.gz"] = data = gzip.compress(name.encode())
        sums[f"{name}.gz"] = hashlib.md5(data).hexdigest()
    reached = threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 5000)
        reached.set()
        time.sleep(5)

    server.answers[f"/{FILES[2]}.gz"] = stall
    (here / "torchvision/__init__.py").write_text("")
    (here / "torchvision/datasets.py").write_text(f"class MNIST:\n    mirrors = [{server.url!r}]\n    resources = {list(sums.items())!r}\n")
    process = start(sys.executable, REPO / "train.py", "--weights", "w.pt", cwd=here, env={"PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"})
    assert reached.wait(60)
    process.send_signal(signal.SIGTERM)
    ended_by(process, signal.SIGTERM)
    assert (here / "w.pt").read_bytes() == OLD and not [path for path in here.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".pt")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopped_in_training(number, tiny, here):
    process = start("uv", "run", REPO / "train.py", "--data-dir", tiny, "--weights", "w.pt", *LONG, cwd=here, env={"OMP_NUM_THREADS": "1"})
    assert process.stdout.readline() == "SimpleCNN(\n"
    time.sleep(random.uniform(0.3, 0.6))  # after the network's lines there is nothing but training
    process.send_signal(number)
    ended_by(process, number)
    assert (here / "w.pt").read_bytes() == OLD and names(here) == ["w.pt"]


def forked(function) -> int:
    """Run `function` in a child process, which ends with status 0 where it returns; returns its id."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            torch.set_num_threads(1)  # OpenMP does not survive a fork
            function()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopped_while_saving(number, train, predict, here):
    """The new file is written, all but its last step. The message is one write, so that no other process can write into it."""
    for script in (train, predict):
        ready, written = os.pipe()
        stderr, writes = socket.socketpair(type=socket.SOCK_DGRAM)  # keeps writes apart
        stderr.settimeout(20)

        def save():
            os.dup2(writes.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            signal.signal(number, script.stop)
            script.os.replace = lambda *_: (os.write(written, b"x"), time.sleep(30))
            script.write(here / "w.pt", b"the new weights")

        child = forked(save)
        os.read(ready, 1)
        os.close(ready)
        os.close(written)
        assert len(names(here)) == 2  # a temporary file is there
        os.kill(child, number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
        assert stderr.recv(1000).decode() == f"\nerror: stopped by {number.name}\n"
        stderr.close()
        writes.close()
        assert names(here) == ["w.pt"] and (here / "w.pt").read_bytes() == OLD


def test_killed_while_saving(train, predict, here):
    """100 times kill -9 at a random moment of saving one of two networks; whoever reads meanwhile sees one of them whole."""
    contents = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        train.save(train.SimpleCNN(), here / "w.pt")
        contents.append((here / "w.pt").read_bytes())

    def save_for_ever():
        while True:
            for content in contents:  # what `save` makes once for all: so most of the time goes into the writing
                train.write(here / "w.pt", content)

    chance, seen = random.Random(0), set()
    for _ in range(100):
        child = forked(save_for_ever)
        before = (here / "w.pt").stat().st_mtime_ns
        while (here / "w.pt").stat().st_mtime_ns == before:  # until the child is at it: a fork takes its time
            time.sleep(0.001)
        moment = time.monotonic() + chance.uniform(0, 0.01)
        try:
            while time.monotonic() < moment:
                predict.load_weights(str(here / "w.pt"))  # raises Error where the file is not whole
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        seen.add(contents.index((here / "w.pt").read_bytes()))
        for path in here.glob(".*.tmp"):  # kill -9 leaves no time to remove it, but it has another name
            path.unlink()
        assert names(here) == ["w.pt"]
    assert seen == {0, 1}


def test_two_trainings_to_one_file(tiny, here):
    """One start of torch for both: it forks as soon as the script is imported."""
    code = f"""
import os, sys
sys.path.insert(0, {str(REPO)!r})
import train
children = []
for seed in (1, 2):
    for weights in ("w.pt", f"alone{{seed}}.pt"):
        child = os.fork()
        if child == 0:
            train.main(["--data-dir", {str(tiny)!r}, "--seed", str(seed), "--weights", weights, *{words(QUICK)!r}])
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    result = run(sys.executable, "-c", code, cwd=here, env=ENV | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0 and result.stdout.count("Accuracy of SimpleCNN") == 4, result.stderr
    assert names(here) == ["alone1.pt", "alone2.pt", "w.pt"]
    assert (here / "w.pt").read_bytes() in ((here / "alone1.pt").read_bytes(), (here / "alone2.pt").read_bytes())


def test_two_writers_at_once(train, predict, here, monkeypatch):
    """The first is held before its last step until the second has written the same file."""
    replace, reached, go_on = os.replace, threading.Event(), threading.Event()

    def held(*paths):
        if threading.current_thread() is first:
            reached.set()
            go_on.wait(20)
        replace(*paths)

    monkeypatch.setattr(os, "replace", held)
    for script in (train, predict):
        reached.clear()
        go_on.clear()
        first = threading.Thread(target=script.write, args=(here / "w.pt", b"first"))
        first.start()
        assert reached.wait(20)
        script.write(here / "w.pt", b"second")
        assert (here / "w.pt").read_bytes() == b"second"
        go_on.set()
        first.join(20)
        assert (here / "w.pt").read_bytes() == b"first" and names(here) == ["w.pt"]


# Stdout, terminals, locales


@pytest.fixture
def digits(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(40):
        digit().rotate(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(params=["buffered", "unbuffered"])
def environment(request):
    env = {name: value for name, value in ENV.items() if name != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
    return env if request.param == "buffered" else env | {"PYTHONUNBUFFERED": "1"}


def test_reader_of_stdout_leaves_early(good, digits, environment, tmp_path):
    """More than a pipe holds: the rest has nowhere to go."""
    command = f'{sys.executable} {REPO}/predict.py --weights {good} {digits}{"/." * 1900} | head -1; echo "${{PIPESTATUS[0]}}"'
    result = run("bash", "-c", command, cwd=tmp_path, env=environment)
    lines = result.stdout.splitlines()
    assert lines[-1] == "0" and len(lines) == 2 and result.stderr == "", (lines, result.stderr)


def test_stdout_full_or_closed(good, digits, environment, tmp_path):
    command = f"{sys.executable} {REPO}/predict.py --weights {good} {digits}/1.png"  # one line: it stays in the buffer
    result = run("sh", "-c", f"{command} > /dev/full", cwd=tmp_path, env=environment)
    assert_one_error_line(result, os.strerror(errno.ENOSPC))
    assert len(result.stderr.splitlines()) == 1
    if "PYTHONUNBUFFERED" not in environment:
        result = run("sh", "-c", f"{command} >&- 2>&-", cwd=tmp_path, env=environment)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_stdin_closed(good, tmp_path):
    result = run("sh", "-c", f"{sys.executable} {REPO}/predict.py --weights {good} - <&-", cwd=tmp_path)
    assert_one_error_line(result, "-: it is no image")


def on_a_terminal(*command, cwd, columns: int, keys: bytes = b"", **environment) -> tuple[int, str]:
    """Run it with stderr on a terminal of that width; returns the status and what was written there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = start(*command, cwd=cwd, env={"OMP_NUM_THREADS": "1", **environment}, stdin=theirs, stderr=theirs, start_new_session=True,
                    preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        shown += data
        if keys and b"epoch" in shown:
            os.write(ours, keys)
            keys = b""
    os.close(ours)
    process.stdout.read()
    return process.wait(60), shown.decode()


def test_ctrl_c_in_a_terminal(tiny, here):
    """The key reaches uv and the script both; the terminal is narrow."""
    status, shown = on_a_terminal("uv", "run", REPO / "train.py", "--data-dir", tiny, "--weights", "w.pt", *LONG, cwd=here, columns=30, keys=b"\3")
    assert status == 130 and shown.count("error: ") == 1, shown
    assert shown.strip().splitlines()[-1] == "error: stopped by SIGINT", shown
    bars = [part for part in re.split(r"\r|\n|\^C", shown) if part.startswith("epoch")]
    assert bars and all(len(bar) <= 30 for bar in bars), shown
    assert "\x1b[3" not in shown and (here / "w.pt").read_bytes() == OLD


def test_dumb_terminal(tiny, here):
    status, shown = on_a_terminal(sys.executable, REPO / "train.py", "--data-dir", tiny, "--weights", "new.pt", *QUICK, cwd=here,
                                  columns=60, TERM="dumb", NO_COLOR="1")  # fmt: skip
    assert status == 0 and "\x1b" not in shown and "\r" not in shown.replace("\r\n", "\n"), shown
    assert [line for line in shown.splitlines() if line] == [f"step {i} of 2: loss {line[-5:]}" for i, line in enumerate(shown.splitlines(), 1)], shown


def test_locale_without_utf_8(train, tiny, good, tmp_path):
    """LC_ALL=C, ASCII streams, no HOME; folders with spaces and letters beyond ASCII, a file name that is no UTF-8."""
    folder = tmp_path / "mes chiffres é 数字"
    folder.mkdir()
    shutil.copytree(tiny, folder / "dônnées")
    for name in (b"\xff\xfe.png", "sept é.png".encode(), b"two\nlines.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(encoded(digit(), "png"))
    (folder / "bäd.png").write_bytes(b"x")
    for extra in ({}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        env = {name: value for name, value in ENV.items() if name != "HOME" and not name.startswith("LC_")}
        env |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", **extra}
        result = run(sys.executable, REPO / "predict.py", "--weights", good, folder, cwd=tmp_path, env=env)
        lines = result.stdout.splitlines()
        assert len(lines) == 3 and all(re.search(r"\.png'? +\d  ", line) for line in lines), (result.stdout, result.stderr)
        assert_one_error_line(result, "d.png")
        if not extra:
            for script, options in (("train.py", [*QUICK, "--weights", "poids é/w.pt"]), ("predict.py", ["--weights", "poids é/w.pt", "--json"])):
                result = run(sys.executable, REPO / script, "--data-dir", "dônnées", *options, cwd=folder, env=env)
                assert result.returncode == 0 and "nnées" in result.stdout.encode().decode("unicode_escape"), (result.stdout, result.stderr)
            (folder / "dônnées/MNIST/raw" / FILES[2]).write_bytes(idx((32, 14, 56), bytes(32 * 784)))
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="not 28×28 images"):
                patch.chdir(folder)
                train.main(words(["--data-dir", "dônnées", *QUICK]))


# Images


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is of that size."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(100_000))) + png_chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def no_time() -> bytes:
    """An animation that has lost how it counts time: Pillow divides by 0."""
    return encoded(digit("RGB"), "avif", save_all=True, append_images=[digit("RGB").rotate(90)]).replace(b"mdhd", bytes(4))


def digit(mode: str = "L", size=(40, 40)) -> Image.Image:
    """A dark stroke on a light ground."""
    image = Image.new("L", size, 255)
    image.paste(0, (size[0] * 9 // 20, size[1] // 5, size[0] * 11 // 20, size[1] * 4 // 5))
    return image.convert(mode)


def draw_bad_and_good(folder: Path) -> tuple[set[str], set[str], set[str]]:
    """Writes images; returns the names of those that can be read, of those that cannot, and of those where both will do."""
    animation = [digit(), digit().rotate(90)]
    files = {
        "good": {
            "plain.png": encoded(digit(), "png"),
            "a name with spaces.png": encoded(digit(), "png"),
            "two\nlines.png": encoded(digit(), "png"),
            "\udcff\udcfe.png": encoded(digit(), "png"),
            "$\\frac{$.png": encoded(digit(), "png"),
            "sixteen.png": encoded(Image.frombytes("I;16", (40, 40), b"".join(struct.pack("<H", v * 257) for v in digit().tobytes())), "png"),
            "cmyk.jpg": encoded(digit("CMYK"), "jpeg"),
            "palette.gif": encoded(digit("P"), "gif"),
            "transparent.png": encoded(digit("RGBA"), "png"),
            "animated.gif": encoded(animation[0], "gif", save_all=True, append_images=animation[1:]),
            "animated.png": encoded(animation[0], "png", save_all=True, append_images=animation[1:]),
            "one bit.png": encoded(digit("1"), "png"),
            "misnamed.jpg": encoded(digit(), "png"),
        },
        "bad": {
            "text.png": b"this is no image\n",
            "empty.png": b"",
            "truncated.png": encoded(digit(), "png")[:-40],
            "truncated.jpg": encoded(digit("RGB", (400, 400)), "jpeg")[:900],
            "bomb.png": bomb(20_000, 20_000),
            "bigger bomb.png": bomb(2**31 - 1, 2**31 - 1),
            "cut short.png": bomb(5_000, 5_000),
            "no time.avif": no_time(),
        },
        "either": {  # no ink, a stroke out of all proportion, levels without a scale: read or refused, in one line
            "float.tiff": encoded(digit("F"), "tiff"),
            "black.png": encoded(Image.new("L", (28, 28), 0), "png"),
            "white.png": encoded(Image.new("L", (28, 28), 255), "png"),
            "1x1.png": encoded(Image.new("L", (1, 1), 7), "png"),
            "long.png": encoded(Image.new("L", (50_000, 1), 7), "png"),
            "high.png": encoded(digit("L", (5, 50_000)), "png"),
        },
    }
    for name, data in (entry for group in files.values() for entry in group.items()):
        (folder / name).write_bytes(data)
    (folder / "broken link.png").symlink_to("nowhere.png")
    (folder / "notes.txt").write_bytes(b"not by its name")
    (folder / "loop").symlink_to(folder)
    (folder / "loop.png").symlink_to("loop.png")
    return set(files["good"]), {*files["bad"], "broken link.png", "loop.png"}, set(files["either"])


def test_images_of_all_kinds(predict, good, tmp_path, capsys):
    """A line for each bad one, with its name; the others are read; status 1."""
    fine, bad, either = draw_bad_and_good(tmp_path)
    with pytest.raises(SystemExit) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        predict.main(["--weights", str(good), "--json", str(tmp_path)])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    read, refused = ({os.path.relpath(entry["file"], tmp_path) for entry in answer[kind]} for kind in ("images", "errors"))
    assert fine <= read and bad <= refused and read | refused == fine | bad | either and not read & refused
    assert len(answer["images"]) + len(answer["errors"]) == len(read | refused)
    lines = err.splitlines()
    assert len(lines) == len(refused) and all(line.startswith("error: ") for line in lines), err
    for name in bad:
        assert sum(predict.printable(str(tmp_path / name)) in line for line in lines) == 1, name
    with pytest.raises(SystemExit) as caught:  # as lines, each on a line of its own
        predict.main(["--weights", str(good), "--device", "cpu", str(tmp_path), str(tmp_path / "not there.png")])
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and len(out.splitlines()) == len(read) and len(err.splitlines()) == len(refused) + 1


def test_pictures_of_images_of_all_kinds(predict, good, tmp_path, capsys):
    """What was read can be drawn: 16-bit, float, a name with TeX in it."""
    fine, _, _ = draw_bad_and_good(tmp_path)
    paths = [str(tmp_path / name) for name in sorted(fine)]
    predict.main(["--weights", str(good), "--plots", str(tmp_path / "plots"), *paths])
    assert (tmp_path / "plots/predictions.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_show_what_was_read(predict, tmp_path):
    """Levels beyond 8 bits, and white ink on nothing."""
    levels = b"".join(struct.pack("<H", 10_000 + 50 * v) for v in digit().tobytes())
    Image.frombytes("I;16", (40, 40), levels).save(tmp_path / "sixteen.png")
    white = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    white.putalpha(digit().point(lambda v: 255 - v))
    white.save(tmp_path / "white.png")
    results = [(str(path), torch.zeros(28, 28), torch.zeros(10)) for path in sorted(tmp_path.iterdir())]
    figure = predict.draw_predictions(results)["predictions.png"]
    for axis in figure.axes[::3]:
        shown = axis.images[0].get_array()
        assert shown.min() == 0 and shown.max() == 255 and 0.05 < (shown < 128).mean() < 0.95, axis.get_title()


def peak_memory(function) -> int:
    """By how many bytes `function` makes this process grow at its worst."""

    def status(name: str) -> int:
        return int(re.search(rf"(?m)^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is read from Linux's /proc")
def test_memory_stays_bounded(predict, good, tmp_path, capsys):
    """The largest image that is read, and larger ones that are not; then 100 of a megapixel, one by one."""
    (tmp_path / "1.png").write_bytes(encoded(Image.new("L", (9_000, 9_000), 255), "png", compress_level=1))
    (tmp_path / "2.png").write_bytes(bomb(40_000, 40_000))
    (tmp_path / "3.png").write_bytes(encoded(Image.new("L", (50_000, 1)), "png"))

    def read(*paths):
        try:
            predict.main(words(["--weights", good, "--device", "cpu", *paths]))
        except SystemExit as exit:
            assert exit.code == 1

    assert peak_memory(lambda: read(tmp_path)) < 1_500e6
    (tmp_path / "m.png").write_bytes(encoded(digit("RGB", (1_000, 1_000)), "png", compress_level=1))
    assert peak_memory(lambda: read(*[tmp_path / "m.png"] * 100)) < 250e6
    (tmp_path / "n.png").write_bytes(encoded(Image.new("RGB", (1_000, 1_000), "white"), "png"))
    assert peak_memory(lambda: read(*[tmp_path / "n.png"] * 100)) < 250e6  # nor do errors keep what they are about
    (tmp_path / "m.png").write_bytes(encoded(digit("RGB", (2_500, 2_500)), "png", compress_level=1))
    assert peak_memory(lambda: read("--plots", tmp_path / "plots", *[tmp_path / "m.png"] * 15)) < 250e6  # 15 times 19 MB


def test_folders_that_lead_back_or_are_closed(predict, good, open_folder):
    """A loop of links ends; a folder that may not be entered is a line, and the rest goes on."""
    for folder in ("a", "b/c", "closed"):
        (open_folder / folder).mkdir(parents=True)
        (open_folder / folder / "x.png").write_bytes(encoded(digit(), "png"))
    (open_folder / "a/up").symlink_to("..")
    (open_folder / "b/c/back").symlink_to(open_folder / "a")
    (open_folder / "weights.pt").write_bytes(good.read_bytes())
    for path in open_folder.rglob("*"):
        path.chmod(0o755) if not path.is_symlink() else None
    (open_folder / "closed").chmod(0)

    def read():
        found = list(predict.read_images(predict.load_weights(str(open_folder / "weights.pt")), [str(open_folder)], 10))
        return json.dumps([(os.path.relpath(path, open_folder), str(seen) if isinstance(seen, predict.Error) else "") for path, seen, _ in found])

    (a, fine), (c, also_fine), (closed, error) = json.loads(as_another_user(read))
    (open_folder / "closed").chmod(0o755)
    assert (a, c, closed) == ("a/x.png", "b/c/x.png", "closed") and not fine and not also_fine and os.strerror(errno.EACCES) in error


# Trust


def test_same_bytes_with_the_same_threads(train, tiny, here):
    """The bits depend on the number of threads (sums are taken in another order), never on the run."""
    images, labels = train.load(tiny, "train")
    threads = torch.get_num_threads()
    for number in {1, threads}:
        torch.set_num_threads(number)
        for name in ("a.pt", "b.pt"):
            train.save(train.train(images, labels, batch_size=16, epochs=2, seed=5), here / name)
        assert (here / "a.pt").read_bytes() == (here / "b.pt").read_bytes()
    torch.set_num_threads(threads)


def test_short_fuzz(tmp_path):
    result = run(sys.executable, REPO / "tests/fuzz.py", "--cases", 900, "--seed", 1, cwd=tmp_path, env=ENV | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0 and re.search(r"(?m)^900 cases", result.stdout), result.stdout + result.stderr
    assert names(tmp_path) == []
