"""Training in several processes that torchrun starts: on this machine, on two hosts, and when one of them fails."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ENV, REPO, SAMPLE, run
from test_train_predict import FILES, PRINTED, files_below, last_line, mirror  # noqa: F401 (a fixture)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
THREE_STEPS = ["--epochs", 0.05, "--batch-size", 64]  # of the 62 that an epoch of the sample has

# What torchrun starts instead of train.py where a test has to see or disturb the inside of a process.
DRIVER = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO)!r})
import torch
import train
RANK = int(os.environ["RANK"])
"""


def torchrun(*arguments, cwd, script=REPO / "train.py", processes=2, **options) -> subprocess.CompletedProcess:
    return run(*TORCHRUN, "--nproc-per-node", processes, script, *arguments, cwd=cwd, timeout=120, **options)


def driver(folder, code: str):
    (folder / "driver.py").write_text(DRIVER + code + "\ntrain.main()\n")
    return folder / "driver.py"


def error_lines(*texts: str) -> list[str]:
    """The lines of train.py's own; torchrun adds a report with a traceback that nothing here can change."""
    return [line for text in texts for line in text.splitlines() if "error: " in line]


def assert_failed(result, *words: str) -> None:
    """The job ended with an error status and just one line of train.py's own, with these words in it."""
    assert result.returncode not in (0, None), result.stderr
    (line,) = error_lines(result.stderr)
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert "train.py\", line" not in result.stderr, result.stderr  # no traceback of ours


# Two processes are one training

RECORD = """
steps, shares = [], []
def cross_entropy(logits, *rest, cross_entropy=train.F.cross_entropy, **options):
    shares.append(len(logits))
    return cross_entropy(logits, *rest, **options)
train.F.cross_entropy = cross_entropy
class Recorder(train.Muon):
    def __init__(self, model, *rest):
        super().__init__(model, *rest)
        self.parameters = list(model.parameters())
    def step(self, lr):
        steps.append([p.grad.clone() for p in self.parameters])
        super().step(lr)
        torch.save((steps, [p.detach().clone() for p in self.parameters], shares[:3], torch.get_num_threads()), f"rank{RANK}.pt")
train.Muon = Recorder
torch.cpu.get_capabilities = dict  # fp32: bf16 rounds each share for itself
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Three steps of fp32 on two processes: `result`, `folder`, and of each process its gradients, weights, shares and threads."""
    folder = tmp_path_factory.mktemp("pair")
    result = torchrun("--data-dir", SAMPLE, *THREE_STEPS, cwd=folder, script=driver(folder, RECORD), env=ENV | {"OMP_NUM_THREADS": "3"})
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(result=result, folder=folder, ranks=[torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)])


def test_gradient_of_a_global_batch_is_that_of_one_process(pair, tmp_path):
    """At each step; fp32 sums in another order differ by about 1e-7, a share left out or counted twice by more than 1e-2."""
    shutil.copy(pair.folder / "driver.py", tmp_path)
    result = run(sys.executable, "driver.py", "--data-dir", SAMPLE, *THREE_STEPS, cwd=tmp_path, env=ENV | {"RANK": "0"})
    assert result.returncode == 0, result.stderr
    alone, alone_weights, _, _ = torch.load(tmp_path / "rank0.pt")
    together, weights, _, _ = pair.ranks[0]
    assert len(alone) == len(together) == 3
    # Muon brings the small singular values of the gradient near 1, their rounding too: a later step has more of it.
    for ours, theirs, tolerance in zip(together, alone, (2e-6, 2e-3, 2e-3)):
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    distance = torch.cat([(a - b).abs().flatten() for a, b in zip(weights, alone_weights)])
    assert distance.mean() < 1e-5, distance.mean()


def test_processes_share_the_batch_and_the_cores_and_end_with_the_same_weights(pair):
    (_, first, *first_share), (_, second, *second_share) = pair.ranks
    assert first_share == second_share == [[32, 32, 32], max(1, os.cpu_count() // 2)]
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    written = torch.load(pair.folder / "data/mnist_cnn.pt", weights_only=True)
    assert all(a.equal(b) for a, b in zip(first, written.values(), strict=True))


def test_only_the_first_process_prints_and_writes(pair):
    assert pair.result.stdout.startswith(PRINTED)
    (line,) = pair.result.stdout[len(PRINTED) :].splitlines()
    assert re.fullmatch(r"Accuracy of SimpleCNN on the 1,000 test images of the sample: [\d.]+ %", line)
    steps = [line for line in pair.result.stderr.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps] == [f"step {n} of 3" for n in (1, 2, 3)]
    assert files_below(pair.folder) - {"driver.pyc", "driver.py", "rank0.pt", "rank1.pt"} == {"mnist_cnn.pt"}


def test_the_line_that_needs_nothing_but_uv(tmp_path):
    requirements = ["uvx", "--with-requirements", REPO / "train.py", "--from", "torch"]
    result = run(*requirements, "torchrun", "--nproc-per-node", 2, REPO / "train.py", "--data-dir", SAMPLE, *THREE_STEPS, "--json", cwd=tmp_path)  # fmt: skip
    answer = json.loads(result.stdout)
    pins = dict(pin.split("==") for pin in re.findall(r'"([^"]+==[^"]+)"', (REPO / "train.py").read_text().split("# ///")[1]))
    assert {name: answer[name] for name in ("torch", "torchvision")} == {name: pins[name] for name in ("torch", "torchvision")}
    assert answer["total"] == 1000 and (tmp_path / answer["weights"]).is_file()


def test_data_are_downloaded_once(mirror, tmp_path):  # noqa: F811
    code = f"""
from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = [{mirror.url!r}], {list(mirror.md5.items())!r}
"""
    result = torchrun(*THREE_STEPS, cwd=tmp_path, script=driver(tmp_path, code))
    assert result.returncode == 0 and "of the sample: " in last_line(result.stdout), result.stderr
    assert mirror.requests == [f"/{name}.gz" for name in FILES]


# Faults


def test_batch_that_the_processes_cannot_share(tmp_path):
    result = torchrun("--data-dir", SAMPLE, "--batch-size", 63, cwd=tmp_path)
    assert_failed(result, "--batch-size 63 is not a multiple of the 2 processes")
    assert not result.stdout and not files_below(tmp_path)


@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_job(victim, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist_cnn.pt").write_bytes(b"old")
    code = f"""
def step(self, lr, step=train.Muon.step, calls=[]):
    calls.append(1)
    if RANK == {victim} and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, lr)
train.Muon.step = step
"""
    started = time.monotonic()
    result = torchrun("--data-dir", SAMPLE, "--epochs", 1000, cwd=tmp_path, script=driver(tmp_path, code))
    assert time.monotonic() - started < 60
    assert_failed(result)
    assert "Accuracy" not in result.stdout
    assert files_below(tmp_path) == {"driver.py", "mnist_cnn.pt"} and (tmp_path / "data/mnist_cnn.pt").read_bytes() == b"old"


def test_torchrun_does_not_end_the_process_that_is_about_to_say_why(tmp_path):
    code = """
import time
class Error(train.Error):
    def __init__(self, *args):
        time.sleep(3)  # torchrun looks for dead processes ten times a second
        super().__init__(*args)
def step(self, lr):
    if RANK == 0:
        os.kill(os.getpid(), signal.SIGKILL)
train.Error, train.Muon.step = Error, step
"""
    assert_failed(torchrun("--data-dir", SAMPLE, cwd=tmp_path, script=driver(tmp_path, code)), "process 1: ")


def test_stopping_torchrun_stops_all(tmp_path):
    process = subprocess.Popen([str(word) for word in (*TORCHRUN, "--nproc-per-node", 2, REPO / "train.py", "--data-dir", SAMPLE, "--epochs", 30)],
                               cwd=tmp_path, env=ENV, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert any(line.startswith("step ") for line in process.stderr)  # it trains
        process.terminate()
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and error_lines(rest) == ["error: stopped by SIGTERM"], rest
    assert not files_below(tmp_path)


# Two hosts


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts: network namespaces joined by a cable or, where this user may make none, two addresses of loopback."""
    names = [f"mnist{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"mn{os.getpid() % 100_000}{letter}" for letter in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {cable[0]} netns {names[0]} type veth peer name {cable[1]} netns {names[1]}")
    for name, end, address in zip(names, cable, addresses):
        commands += [f"-n {name} addr add {address}/24 dev {end}", f"-n {name} link set {end} up", f"-n {name} link set lo up"]
    namespaces = bool(shutil.which("ip")) and all(subprocess.run(["ip", *c.split()], capture_output=True).returncode == 0 for c in commands)
    print("two hosts are", "network namespaces" if namespaces else "addresses of loopback")
    if not namespaces:
        addresses, cable = ["127.0.0.1", "127.0.0.2"], ["lo", "lo"]
    yield [SimpleNamespace(address=address, interface=end, prefix=["ip", "netns", "exec", name] if namespaces else [])
           for name, end, address in zip(names, cable, addresses)]  # fmt: skip
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True) if namespaces else None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_on(hosts, folder, *arguments) -> list[subprocess.CompletedProcess]:
    """torchrun on each host with a process each, in a folder of its own that has the sample as data/mnist."""
    endpoint = f"{hosts[0].address}:{free_port()}"
    running = []
    for number, host in enumerate(hosts):
        command = [*host.prefix, *TORCHRUN, "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint,
                   "--rdzv-conf", f"is_host={1 - number}", "--local-addr", host.address, REPO / "train.py", *arguments]  # fmt: skip
        running.append(subprocess.Popen([str(word) for word in command], cwd=folder / f"host{number}", text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, env=ENV | {"GLOO_SOCKET_IFNAME": host.interface}))  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in running]
        return [subprocess.CompletedProcess(p.args, p.returncode, *output) for p, output in zip(running, outputs)]
    finally:
        for process in running:
            process.kill()


@pytest.fixture
def folders(tmp_path):
    for number in (0, 1):
        shutil.copytree(SAMPLE / "MNIST", tmp_path / f"host{number}/data/mnist/MNIST")
    return tmp_path


def test_two_hosts(hosts, folders):
    first, second = run_on(hosts, folders, *THREE_STEPS)
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    assert first.stdout.count("Accuracy") == 1 and not second.stdout
    assert "mnist_cnn.pt" in files_below(folders / "host0") and "mnist_cnn.pt" not in files_below(folders / "host1")


def test_data_that_one_host_cannot_read_end_all(hosts, folders):
    path = folders / "host1/data/mnist/MNIST/raw" / FILES[1]
    path.write_bytes(path.read_bytes()[:-1])
    started = time.monotonic()
    first, second = run_on(hosts, folders, "--epochs", 1000)
    assert time.monotonic() - started < 60
    assert first.returncode and second.returncode
    (line,) = error_lines(first.stderr, second.stderr)
    assert line in second.stderr and FILES[1] in line and "damaged" in line
    assert files_below(folders) == set(FILES) and "Accuracy" not in first.stdout


# Reading very many images


def test_many_images_in_parallel_by_xargs(trained, predict, tmp_path):
    """The README's line: a file for each process, because lines of several would mix in one."""
    from PIL import Image

    images, _ = predict.load(SAMPLE, "test")
    (tmp_path / "digits").mkdir()
    for number, image in enumerate(images[:5]):
        Image.fromarray(image.numpy()).save(tmp_path / f"digits/no {number}.png")
    line = f"""find digits -name '*.png' -print0 | xargs -0 -P 2 -n 3 sh -c 'uv run {REPO}/predict.py --csv --weights {trained.weights} "$@" > part-$$.csv' sh"""  # fmt: skip
    result = run("sh", "-c", line, cwd=tmp_path, env=ENV | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    parts = [path.read_text().splitlines() for path in tmp_path.glob("part-*.csv")]
    assert len(parts) == 2 and all(part[0].startswith("file,digit,") for part in parts)
    assert sorted(row.split(",")[0] for part in parts for row in part[1:]) == [f"digits/no {number}.png" for number in range(5)]
