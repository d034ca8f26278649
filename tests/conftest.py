"""What the tests share: running a script as a user does, importing one, a trained network, a server on loopback."""

import importlib.util
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parent.parent
SAMPLE = REPO / "data/sample"
MNIST = REPO.parent / "shared/mnist"
real_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"the real MNIST is not in {MNIST}")

# As on a user's machine, where Python keeps the bytecode of torch: half the start-up.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def import_script(name: str):
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, REPO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, cwd, env=ENV, timeout=300, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], cwd=cwd, env=env, timeout=timeout, text=True, capture_output=True, **options)


def uv_run(script: str, *arguments, cwd, **options) -> subprocess.CompletedProcess:
    """`uv run script arguments` in the folder `cwd`."""
    return run("uv", "run", REPO / script, *arguments, cwd=cwd, **options)


def run_with_mirrors(script: str, *arguments, mirrors, cwd, md5=None, **options) -> subprocess.CompletedProcess:
    """Run a script as `python script arguments`, with other mirrors (and MD5 sums) in torchvision."""
    code = f"""
import gc, runpy, sys
gc.freeze = lambda: None  # here torchvision comes first; what it imports complains at exit about objects that are frozen
from torchvision.datasets import MNIST
MNIST.mirrors = {mirrors!r}
MNIST.resources = [(name, {md5 or {}!r}.get(name, md5)) for name, md5 in MNIST.resources]
sys.argv = {[script, *map(str, arguments)]!r}
runpy.run_path({str(REPO / script)!r}, run_name="__main__")
"""
    return run(sys.executable, "-c", code, cwd=cwd, **options)


def assert_one_error_line(result: subprocess.CompletedProcess, *words: str, status: int = 1) -> None:
    """The run ended with `status`, its last line on stderr is the one error, with these words in it, and no traceback."""
    assert result.returncode == status, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stderr.strip().splitlines()
    assert sum("error: " in line for line in lines) == 1 and "error: " in lines[-1], result.stderr
    for word in words:
        assert word in lines[-1], (word, lines[-1])


@pytest.fixture(scope="session")
def train():
    return import_script("train")


@pytest.fixture(scope="session")
def predict():
    return import_script("predict")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One default training on the sample, as a user runs it: `folder`, `weights`, `stdout`, `stderr`."""
    folder = tmp_path_factory.mktemp("trained")
    result = uv_run("train.py", "--data-dir", SAMPLE, cwd=folder)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(folder=folder, weights=folder / "data/mnist_cnn.pt", stdout=result.stdout, stderr=result.stderr)


@pytest.fixture
def server():
    """A web server on loopback: `answers` maps a path to bytes or to a function of the request handler; `requests` is its log."""
    answers, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            answer = answers.get(self.path)
            if callable(answer):
                answer(self)
            elif answer is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}/", answers=answers, requests=requests)
    httpd.shutdown()
    httpd.server_close()
