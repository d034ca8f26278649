"""Training in several processes that torchrun starts, on one machine and on two."""

import os
import re
import shutil
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import pytest
import torch
from conftest import ENV, FILES, REPO, SAMPLE, driver, files_below, run, training

not_linux = sys.platform != "linux"
pytestmark = pytest.mark.skipif(not_linux, reason="torchrun was tried on Linux only")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
# Of the 62 steps that an epoch of the sample has.
THREE_STEPS = ["--epochs", "0.05", "--batch-size", "64"]
WRITE_PID = r"""import os, pathlib
pathlib.Path("pid" + os.environ["RANK"]).write_text(str(os.getpid()))"""


def test_two_processes_are_one_training(tmp_path):
    """The same weights but for rounding, in bf16 4e-5; half a batch makes it 1e-3.

    So they read nearly the same right: after three steps, within 5 of 1,000 digits.
    """
    options = ["--data-dir", SAMPLE, *THREE_STEPS, "--weights"]
    train = REPO / "train.py"
    one = run(sys.executable, train, *options, "1.pt", cwd=tmp_path)
    two = run(*TWO, train, *options, "2.pt", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    first, second = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    gaps = [(first[name] - second[name]).abs().flatten() for name in first]
    assert torch.cat(gaps).mean() < 2e-4
    said = re.findall(r"(?m)^Accuracy .*: (\S+) %$", one.stdout + two.stdout)
    assert len(said) == 2 and abs(float(said[0]) - float(said[1])) <= 0.5
    assert two.stdout.count("SimpleCNN(") == two.stdout.count("wrote 2.pt") == 1
    assert files_below(tmp_path) == {"1.pt", "2.pt"}


def test_data_are_downloaded_once(mirror, tmp_path):
    script = driver(tmp_path, mirror.code)
    result = run(*TWO, script, *THREE_STEPS, cwd=tmp_path)
    assert "the 1,000 test images: " in result.stdout, result.stderr
    # torchvision asks twice, first for redirections.
    assert [mirror.requests.count(f"/{name}.gz") for name in FILES] == [2] * 4


def test_a_process_that_dies_ends_the_job(tmp_path):
    """It is the one that does not write the weights; the old ones stay."""
    (tmp_path / "w.pt").write_bytes(b"old")
    with training(*TWO, driver(tmp_path, WRITE_PID), cwd=tmp_path) as process:
        os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode and b"SIGKILL" in stderr and b"Accuracy" not in stdout
    assert (tmp_path / "w.pt").read_bytes() == b"old"


def test_two_hosts(tmp_path):
    """Two addresses of loopback, each with a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    common = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]

    def run_on(number: int) -> CompletedProcess:
        folder = tmp_path / f"host{number}"
        shutil.copytree(SAMPLE / "MNIST", folder / "data/mnist/MNIST")
        own = f"--rdzv-conf=is_host={1 - number}", f"--local-addr=127.0.0.{number + 1}"
        command = [*common, address, *own, REPO / "train.py", *THREE_STEPS]
        return run(*command, cwd=folder, env=ENV | {"GLOO_SOCKET_IFNAME": "lo"})

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(run_on, (0, 1))
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    assert first.stdout.count("Accuracy ") == 1 and not second.stdout
    assert (tmp_path / "host0/data/mnist_cnn.pt").exists()
