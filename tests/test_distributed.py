"""Training in several processes that torchrun starts: on one machine, on two hosts, and when one of them fails."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ENV, FILES, REPO, SAMPLE, driver, files_below, run
from test_data import mirror  # noqa: F401 (a fixture)
from test_train import PRINTED

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
THREE_STEPS = ["--epochs", 0.05, "--batch-size", 64]  # of the 62 that an epoch of the sample has
FP32 = "import torch\ntorch.cpu.get_capabilities = dict"  # bf16 would round the parts of a batch each for itself


def torchrun(script, *arguments, cwd) -> subprocess.CompletedProcess:
    return run(*TORCHRUN, "--standalone", "--nproc-per-node", 2, script, *arguments, cwd=cwd, timeout=120)


def test_two_processes_are_one_training(tmp_path):
    """The same options give the same weights but for rounding, 1e-7 a sum; a part left out changes them by 1e-3."""
    script = driver(tmp_path, FP32)
    options = ["--data-dir", SAMPLE, *THREE_STEPS, "--weights"]
    assert run(sys.executable, script, *options, "one.pt", cwd=tmp_path).returncode == 0
    result = torchrun(script, *options, "two.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert difference.mean() < 2e-5, difference.mean()
    assert result.stdout.startswith(PRINTED) and len(result.stdout.splitlines()) == len(PRINTED.splitlines()) + 1
    assert "Accuracy" in result.stdout and files_below(tmp_path) == {"driver.py", "one.pt", "two.pt"}


def test_the_line_that_needs_nothing_but_uv(tmp_path):
    command = ["uvx", "--with-requirements", REPO / "train.py", "--from", "torch", "torchrun", "--standalone"]
    options = ["--data-dir", SAMPLE, *THREE_STEPS, "--json"]
    result = run(*command, "--nproc-per-node", 2, REPO / "train.py", *options, cwd=tmp_path, timeout=900)
    answer = json.loads(result.stdout)
    pin = re.search(r'"torch==([^"]+)"', (REPO / "train.py").read_text())[1]
    assert answer["torch"].split("+")[0] == pin and answer["total"] == 1000 and files_below(tmp_path) == {"mnist_cnn.pt"}


def test_each_process_has_its_part_of_the_cores(tmp_path):
    code = "import atexit\nimport os\nimport torch\n"
    code += 'atexit.register(lambda: open("threads" + os.environ["RANK"], "w").write(str(torch.get_num_threads())))'
    assert torchrun(driver(tmp_path, code), "--data-dir", SAMPLE, *THREE_STEPS, cwd=tmp_path).returncode == 0
    expected = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [(tmp_path / f"threads{rank}").read_text() for rank in (0, 1)] == [expected] * 2


def test_data_are_downloaded_once(mirror, tmp_path):  # noqa: F811
    result = torchrun(driver(tmp_path, mirror.code), *THREE_STEPS, cwd=tmp_path)
    assert result.returncode == 0 and "Accuracy of SimpleCNN on the 1,000 test images: " in result.stdout, result.stderr
    assert [mirror.requests.count(f"/{name}.gz") for name in FILES] == [2] * 4  # the first looks for a redirection


def test_batch_that_the_processes_cannot_share(tmp_path):
    result = torchrun(REPO / "train.py", "--data-dir", SAMPLE, "--batch-size", 63, cwd=tmp_path)
    assert result.returncode != 0 and "error: --batch-size 63 is not from 1 to 4000, a multiple of 2" in result.stderr
    assert "Accuracy" not in result.stdout and not files_below(tmp_path)


@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_job(victim, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    code = f"""import os
import signal
import torch.nn.functional as F
cross_entropy = F.cross_entropy
def dies(*args, **options):
    if os.environ["RANK"] == "{victim}":
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(*args, **options)
F.cross_entropy = dies"""
    result = torchrun(driver(tmp_path, code), "--data-dir", SAMPLE, "--epochs", 1000, "--weights", "w.pt", cwd=tmp_path)
    assert result.returncode != 0 and "SIGKILL" in result.stderr and "Accuracy" not in result.stdout
    assert files_below(tmp_path) == {"driver.py", "w.pt"} and (tmp_path / "w.pt").read_bytes() == b"old"


# Two hosts: two addresses of loopback, each with a process and a folder of its own


def run_on_two_hosts(folder, *arguments) -> list[subprocess.CompletedProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for number in (0, 1):
        host = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint,
                "--rdzv-conf", f"is_host={1 - number}", "--local-addr", f"127.0.0.{number + 1}"]  # fmt: skip
        command = [str(word) for word in (*TORCHRUN, *host, REPO / "train.py", *arguments)]
        running.append(subprocess.Popen(command, cwd=folder / f"host{number}", env=ENV | {"GLOO_SOCKET_IFNAME": "lo"},
                                        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    try:
        outputs = [process.communicate(timeout=180) for process in running]
        return [subprocess.CompletedProcess(p.args, p.returncode, *output) for p, output in zip(running, outputs)]
    finally:
        for process in running:
            process.kill()


@pytest.fixture
def hosts(tmp_path):
    for number in (0, 1):
        shutil.copytree(SAMPLE / "MNIST", tmp_path / f"host{number}/data/mnist/MNIST")
    return tmp_path


def test_two_hosts(hosts):
    first, second = run_on_two_hosts(hosts, *THREE_STEPS)
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    assert first.stdout.count("Accuracy") == 1 and not second.stdout
    assert "mnist_cnn.pt" in files_below(hosts / "host0") and "mnist_cnn.pt" not in files_below(hosts / "host1")


def test_data_that_one_host_cannot_read_end_all(hosts):
    path = hosts / "host1/data/mnist/MNIST/raw" / FILES[1]
    path.write_bytes(path.read_bytes()[:-1])
    first, second = run_on_two_hosts(hosts, "--epochs", 1000)
    assert first.returncode and second.returncode and "Accuracy" not in first.stdout
    assert f"error: no 28×28 digits in data/mnist/MNIST/raw/{FILES[0]}" in second.stderr
    assert files_below(hosts) == set(FILES)
