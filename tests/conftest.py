"""What the tests share: running and importing a script, a trained network, a server."""

import gzip
import hashlib
import importlib.util
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = ["train.py", "predict.py", "read.py", "draw.py"]
SAMPLE = REPO / "data/sample"
# Where the real MNIST may lie; the first run of train.py puts it into the second.
PLACES = [REPO.parent / "shared/mnist", REPO / "data/mnist"]
MNIST = next((folder for folder in PLACES if folder.is_dir()), PLACES[0])
FILES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]

# As on a user's machine, where Python keeps the bytecode of torch: half the start-up.
ENV = dict(os.environ)
ENV.pop("PYTHONDONTWRITEBYTECODE", None)
# The discard port, where nobody listens, as proxy: a machine without a network.
NOWHERE = "http://127.0.0.1:9"
OFFLINE = ENV | {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "UV_HTTP_RETRIES": "0"}


# %% Scripts
def import_script(name: str) -> ModuleType:
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, REPO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, **options) -> CompletedProcess:
    """Run a command, and keep what it prints."""
    words = [str(word) for word in command]
    usual = {"env": ENV, "timeout": 300, "encoding": "utf-8", "capture_output": True}
    return subprocess.run(words, **usual | options)


def uv_run(script: str, *arguments, **options) -> CompletedProcess:
    """`uv run script arguments`."""
    return run("uv", "run", REPO / script, *arguments, **options)


def driver(folder: Path, code: str) -> Path:
    """A script in `folder` that runs `code` and then train.py, in one process."""
    path, train = folder / "driver.py", str(REPO / "train.py")
    path.write_text(
        f"import runpy\n{code}\nrunpy.run_path({train!r}, run_name='__main__')\n"
    )
    return path


@contextmanager
def training(*command, **options) -> Iterator[subprocess.Popen]:
    """A process of 1,000 epochs, from its first steps on."""
    options |= {"env": ENV, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [*command, "--data-dir", SAMPLE, "--epochs", "1000", "--weights", "w.pt"]
    with subprocess.Popen([str(word) for word in words], **options) as process:
        try:
            said = b""
            while b"step/s" not in said:  # the bar begins
                more = process.stderr.read(1)
                assert more, said
                said += more
            yield process
        finally:
            process.kill()


def assert_one_error_line(result: CompletedProcess, *words: str, status=1) -> None:
    """The run ended with `status` and one error, its last line, with these words."""
    assert result.returncode == status, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if "error: " in line]
    assert errors == lines[-1:], result.stderr
    for word in words:
        assert word in lines[-1], (word, lines[-1])


def imported(name: str):
    """A fixture: the script as a module."""
    return pytest.fixture(lambda: import_script(name), scope="session", name=name)


train, predict, read = imported("train"), imported("predict"), imported("read")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> SimpleNamespace:
    """The sample's training by a user without a network: its files and words."""
    folder = tmp_path_factory.mktemp("trained")
    # uv needs the network once, to build the environments.
    for script in SCRIPTS:
        result = run("uv", "sync", "--script", REPO / script, cwd=folder, timeout=900)
        assert result.returncode == 0, result.stderr
    (folder / "data").mkdir()
    (folder / "data/sample").symlink_to(SAMPLE)
    (folder / "data/ink.pt").symlink_to(REPO / "data/ink.pt")
    result = uv_run("train.py", cwd=folder, env=OFFLINE)
    assert result.returncode == 0, result.stderr
    said = {"stdout": result.stdout, "stderr": result.stderr}
    return SimpleNamespace(folder=folder, weights=folder / "data/mnist_cnn.pt", **said)


# %% Files
def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def idx(shape: tuple, data: bytes) -> bytes:
    """A file in MNIST's format: a header of big-endian integers, then the bytes."""
    sizes = [size.to_bytes(4, "big") for size in shape]
    return bytes([0, 0, 8, len(shape)]) + b"".join(sizes) + data


def digit(number: int = 0) -> Image.Image:
    """One of the sample's test images."""
    start = 16 + 784 * number
    pixels = (SAMPLE / "MNIST/raw" / FILES[2]).read_bytes()[start : start + 784]
    return Image.frombytes("L", (28, 28), pixels)


def play_mnist(folder: Path) -> None:
    """The sample's 1,000 test images as data/mnist, also to train on: quicker."""
    raw = folder / "data/mnist/MNIST/raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(SAMPLE / "MNIST/raw" / name.replace("train", "t10k"))


# %% Servers
@pytest.fixture
def server():
    """A web server: `answers` maps a path to bytes, `requests` is its log."""
    answers, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            answer = answers.get(self.path, b"")
            self.send_response(200 if answer else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/"
    yield SimpleNamespace(url=url, answers=answers, requests=requests)
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def mirror(server) -> SimpleNamespace:
    """A server with the sample; `code` makes it torchvision's, after a dead one."""
    resources = []
    for name in FILES:
        data = gzip.compress((SAMPLE / "MNIST/raw" / name).read_bytes(), 1)
        server.answers[f"/{name}.gz"] = data
        resources.append((f"{name}.gz", hashlib.md5(data).hexdigest()))
    server.code = f"""from torchvision.datasets import MNIST
MNIST.mirrors = [{NOWHERE + "/"!r}, {server.url!r}]
MNIST.resources = {resources}"""
    return server
