"""What the tests share: running and importing a script, a trained network, a server on loopback."""

import importlib.util
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
SAMPLE = REPO / "data/sample"
MNIST = REPO.parent / "shared/mnist"
FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
real_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"the real MNIST is not in {MNIST}")

# As on a user's machine, where Python keeps the bytecode of torch: half the start-up.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
# The discard port, where nobody listens, as proxy: a machine without a network.
OFFLINE = ENV | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def import_script(name: str):
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, REPO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, cwd, env=ENV, timeout=300, **options) -> subprocess.CompletedProcess:
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, text=True, capture_output=True, **options)


def uv_run(script: str, *arguments, cwd, **options) -> subprocess.CompletedProcess:
    """`uv run script arguments` in the folder `cwd`."""
    return run("uv", "run", REPO / script, *arguments, cwd=cwd, **options)


def assert_one_error_line(result: subprocess.CompletedProcess, *words: str, status: int = 1) -> None:
    """The run ended with `status`, no traceback, and as last line on stderr the one error, with these words."""
    assert result.returncode == status, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stderr.strip().splitlines()
    assert sum("error: " in line for line in lines) == 1 and "error: " in lines[-1], result.stderr
    for word in words:
        assert word in lines[-1], (word, lines[-1])


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def idx(shape: tuple, data: bytes) -> bytes:
    """A file in MNIST's format: a header of big-endian integers, then the bytes."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


def digit(number: int = 0) -> Image.Image:
    """One of the sample's test images."""
    pixels = (SAMPLE / "MNIST/raw" / FILES[2]).read_bytes()[16 + 784 * number :]
    return Image.frombytes("L", (28, 28), pixels[:784])


def play_mnist(folder: Path) -> None:
    """The sample's 1,000 test images as `folder`'s data/mnist, also those to train on: quicker than 4,000."""
    (raw := folder / "data/mnist/MNIST/raw").mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(SAMPLE / "MNIST/raw" / name.replace("train", "t10k"))


def driver(folder: Path, code: str) -> Path:
    """A script in `folder` that runs `code`, which may change torch or torchvision, and then train.py."""
    path = folder / "driver.py"
    path.write_text(f"import runpy\n{code}\nrunpy.run_path({str(REPO / 'train.py')!r}, run_name='__main__')\n")
    return path


@pytest.fixture(scope="session")
def train():
    return import_script("train")


@pytest.fixture(scope="session")
def predict():
    return import_script("predict")


@pytest.fixture(scope="session")
def read():
    return import_script("read")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A training on the sample by a user without a network: its `folder`, `weights`, `stdout`, `stderr`."""
    folder = tmp_path_factory.mktemp("trained")
    for script in ("train.py", "predict.py", "read.py"):  # uv needs the network once, to build their environments
        assert run("uv", "sync", "--script", REPO / script, cwd=folder, timeout=900).returncode == 0
    (folder / "data").mkdir()
    (folder / "data/sample").symlink_to(SAMPLE)
    result = uv_run("train.py", cwd=folder, env=OFFLINE)
    assert result.returncode == 0, result.stderr
    weights = folder / "data/mnist_cnn.pt"
    return SimpleNamespace(folder=folder, weights=weights, stdout=result.stdout, stderr=result.stderr)


@pytest.fixture
def server():
    """A web server on loopback: `answers` maps a path to bytes; `requests` is its log."""
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
    yield SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}/", answers=answers, requests=requests)
    httpd.shutdown()
    httpd.server_close()
