"""The scripts run without a clone, without uv, from elsewhere, on other Pythons and with other builds of torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENV, REPO, SAMPLE, assert_one_error_line, run, uv_run
from test_export import export, packages, serve_index, wheel

SHORT = ["--epochs", 0.05, "--data-dir", SAMPLE]
ACCURACY = re.compile(r"Accuracy of SimpleCNN on the 1,000 test images of the sample: \d\d\.\d\d %\n\Z")


def assert_trained(result: subprocess.CompletedProcess, folder: Path) -> None:
    """train.py went through and left its weights in `folder`, and nothing else."""
    assert result.returncode == 0 and ACCURACY.search(result.stdout), result.stderr[-3000:]
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] == ["data/mnist_cnn.pt"]


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def digit(tmp_path) -> Path:
    from PIL import Image

    data = (SAMPLE / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    Image.frombytes("L", (28, 28), data[16:800]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


# From nothing


def test_stranger_reads_a_digit_with_one_line(server, trained, digit, empty, tmp_path):
    """`uv run URL --weights URL digit.png`, then the same with the weights cached and their server gone."""
    server.answers["/predict.py"] = (REPO / "predict.py").read_bytes()
    server.answers["/mnist_cnn.pt"] = trained.weights.read_bytes()
    environment = {**ENV, "TORCH_HOME": str(tmp_path / "torch")}
    command = ["uv", "run", f"{server.url}predict.py", "--weights", f"{server.url}mnist_cnn.pt", digit]
    results = [run(*command, cwd=empty, env=environment)]
    del server.answers["/mnist_cnn.pt"]
    results.append(run(*command, cwd=empty, env=environment))
    expected = uv_run("predict.py", digit, cwd=trained.folder)
    for result in results:
        assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
    assert not list(empty.iterdir()) and server.requests.count("/mnist_cnn.pt") == 1


def test_weights_that_are_not_there_or_not_weights(server, digit, empty, tmp_path):
    environment = {**ENV, "TORCH_HOME": str(tmp_path / "torch")}
    server.answers["/page"] = b"<html>Log in</html>"
    for url in (f"{server.url}nosuch.pt", f"{server.url}page", "http://127.0.0.1:9/dead.pt"):
        assert_one_error_line(uv_run("predict.py", "--weights", url, digit, cwd=empty, env=environment), url)


@pytest.mark.parametrize("name", ["train.py", "predict.py"])
def test_stdin_and_url(name, server, trained, empty):
    server.answers[f"/{name}"] = (REPO / name).read_bytes()
    arguments = [*map(str, SHORT)] if name == "train.py" else ["--data-dir", str(SAMPLE), "--weights", str(trained.weights)]
    with open(REPO / name) as file:
        piped = run("uv", "run", "-", *arguments, cwd=empty, stdin=file)
    fetched = run("uv", "run", f"{server.url}{name}", *arguments, cwd=empty)
    for result in (piped, fetched):
        assert result.returncode == 0 and ACCURACY.search(result.stdout), result.stderr
    assert piped.stdout == fetched.stdout
    assert sorted(path.name for path in empty.iterdir()) == (["data"] if name == "train.py" else [])


def test_as_a_command(empty):
    assert_trained(run(REPO / "train.py", *SHORT, cwd=empty), empty)


def test_uvx(empty):
    assert_trained(run("uvx", "--with-requirements", REPO / "train.py", "python", REPO / "train.py", *SHORT, cwd=empty), empty)


# Without uv's environments


def test_pipx(empty, tmp_path):
    """With its uv backend, which it takes where uv is there; pip would fetch 3 GB."""
    environment = {**ENV, "PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    assert_trained(run("uvx", "pipx==1.18.4", "run", "--backend", "uv", REPO / "train.py", *SHORT, cwd=empty, env=environment), empty)


def test_hatch(empty, tmp_path):
    environment = {**ENV, "HATCH_DATA_DIR": str(tmp_path / "data"), "HATCH_CACHE_DIR": str(tmp_path / "cache")}
    assert_trained(run("uvx", "hatch==1.18.2", "run", REPO / "train.py", *SHORT, cwd=empty, env=environment), empty)


def test_pip(tmp_path, empty):
    """A venv and plain pip, with the hashes: all 3 GB from the registry, and then what reads the other forms of the file."""
    for name in ("requirements.txt", "pylock.toml"):
        assert export("--format", name, "--output", tmp_path / name).returncode == 0
    assert run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path).returncode == 0
    python = tmp_path / "venv/bin/python"

    def pip(*words, timeout=300) -> str:
        environment = {**ENV, "PIP_CONSTRAINT": os.devnull}  # in place of one in pip's settings for this machine
        result = run(python, "-m", "pip", *words, cwd=tmp_path, timeout=timeout, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    pip("install", "--no-cache-dir", "--require-hashes", "-r", "requirements.txt", timeout=900)
    pinned = packages((tmp_path / "requirements.txt").read_text())
    frozen = packages(pip("freeze", "--all"))
    assert {package for package in frozen if not package.startswith("pip==")} <= pinned and len(frozen) > 25
    assert_trained(run(python, REPO / "train.py", *SHORT, cwd=empty), empty)

    # conda writes the `- pip: [-r requirements.txt]` of an environment.yml into such a file, and runs pip so. pip reads
    # pylock.toml from 26.1 on.
    (tmp_path / "condaenv.txt").write_text("-r requirements.txt\n")
    pip("install", "pip==26.3")
    for words in (["-U", "-r", "condaenv.txt", "--exists-action=b"], ["--require-hashes", "-r", "pylock.toml"]):
        pip("uninstall", "--yes", "numpy", "tqdm")
        installed = pip("install", *words).rpartition("Successfully installed")[2].split()
        assert {package.partition("-")[0] for package in installed} == {"numpy", "tqdm"}
    assert packages(pip("freeze", "--all")) - frozen == {"pip==26.3"}
    shutil.rmtree(tmp_path / "venv")  # 5 GB, of which pytest would keep three


# From other places

THEIRS = """
[project]
name = "theirs"
version = "1"
requires-python = "==2.7.*"
dependencies = ["nosuchpackage-of-theirs"]
[build-system]
requires = ["nosuchbackend"]
build-backend = "nosuchbackend"
[tool.uv]
constraint-dependencies = ["torch<2"]
override-dependencies = ["tqdm==1"]
"""


def test_someone_elses_project_is_ignored(empty):
    (empty / "deep").mkdir()
    (empty / "pyproject.toml").write_text(THEIRS)
    (empty / "uv.lock").write_text("nonsense")
    result = run("uv", "run", os.path.relpath(REPO / "train.py", empty / "deep"), *SHORT, cwd=empty / "deep")
    assert_trained(result, empty / "deep")
    assert sorted(path.name for path in empty.iterdir()) == ["deep", "pyproject.toml", "uv.lock"]


def test_someone_elses_index_is_ignored_with_no_config(empty):
    """uv takes the index, and only that, from a pyproject.toml around a script."""
    (empty / "pyproject.toml").write_text(THEIRS + 'index-url = "http://127.0.0.1:9/simple"\n')
    result = run("uv", "run", "--no-config", REPO / "predict.py", "--help", cwd=empty)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting a folder read-only needs root and unshare")
def test_read_only_folder(empty, tmp_path):
    """Nothing is written but the outputs that are named, and those that are not named are one line."""
    (empty / "data").mkdir()
    for name in ("train.py", "predict.py"):
        shutil.copy(REPO / name, empty)
    (empty / "data/sample").symlink_to(SAMPLE)
    read_only = ["unshare", "--mount", "sh", "-c", 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && "$@"', "sh"]
    result = run(*read_only, "uv", "run", "train.py", "--epochs", 0.05, "--data-dir", "data/sample", "--weights", tmp_path / "w.pt", cwd=empty)
    assert result.returncode == 0 and ACCURACY.search(result.stdout), result.stderr
    result = run(*read_only, "uv", "run", "predict.py", "--data-dir", "data/sample", "--weights", tmp_path / "w.pt", cwd=empty)
    assert result.returncode == 0 and ACCURACY.search(result.stdout), result.stderr
    result = run(*read_only, "uv", "run", "train.py", "--epochs", 0.05, "--data-dir", "data/sample", cwd=empty)
    assert_one_error_line(result, "cannot write data/mnist_cnn.pt", "--weights")
    assert "Read-only" in result.stderr


# Other Pythons


def python_of(version: str) -> str:
    """The path of a Python on this machine, "" where there is none; uv could fetch one, but this is no test of that."""
    prefix = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [str(path) for path in sorted(prefix.glob(f"{version}.*/bin/python{version}"))] + [shutil.which(f"python{version}") or ""]
    return found[0]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_python(version, empty, tmp_path):
    """On copies, because uv keeps one environment for each path of a script, and the others shall stay as they are."""
    python = python_of(version)
    if not python:
        pytest.skip(f"Python {version} is not on this machine")
    weights = tmp_path / "w.pt"
    for name, words in (("train.py", SHORT), ("predict.py", ["--data-dir", SAMPLE])):
        shutil.copy(REPO / name, tmp_path)
        result = run("uv", "run", "--python", python, tmp_path / name, *words, "--weights", weights, "--json", cwd=empty)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["python"].startswith(f"{version}.") and answer["dataset"] == "sample"
        environment = Path(run("uv", "python", "find", "--script", tmp_path / name, cwd=empty).stdout.strip()).parent.parent
        assert (environment / "pyvenv.cfg").exists()
        shutil.rmtree(environment)


# Other builds of torch


def test_cpu_build_from_the_index_of_pytorch(server, tmp_path):
    """The README's line, with an index on loopback in the place of PyTorch's and the scripts' own metadata."""
    block = (REPO / "predict.py").read_text().partition("# ///\n")[0] + "# ///\n"
    pins = dict(re.findall(r'"([a-z]+)==([^"]+)"', block))
    own = {"torch", "torchvision"} & pins.keys()
    registry = [wheel(name, version, ["numpy"] if name in own else []) for name, version in pins.items()]
    registry = serve_index(server, "registry", [*registry, wheel("numpy", "2")])
    # Like the real one: no upload times, and other packages than its own, of which uv would see nothing but what is here.
    cpu = [wheel(name, f"{version}+cpu" if name in own else version, ["numpy"] if name in own else []) for name, version in pins.items()]
    cpu = serve_index(server, "cpu", [*cpu, wheel("numpy", "1")], uploaded=None)
    body = f"from importlib.metadata import version\nprint(*(version(name) for name in {[*own, 'numpy']!r}))\n"
    (tmp_path / "x.py").write_text(block.replace("#!/usr/bin/env -S uv run --script\n", "") + body)
    environment = {**ENV, "UV_DEFAULT_INDEX": registry, "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_HTTP_RETRIES": "0"}
    registry_builds = [*(pins[name] for name in own), "2"]
    cpu_builds = [*(f"{pins[name]}+cpu" for name in own), "2"]
    option = ["--index", cpu, "--index-strategy", "unsafe-best-match"]
    for words, expected in (
        ([], registry_builds),
        (option, registry_builds),  # they satisfy the pins, so uv leaves them in its environment
        (["--upgrade", *option], cpu_builds),
        ([], cpu_builds),
        (["--reinstall"], registry_builds),
    ):
        result = run("uv", "run", *words, "x.py", cwd=tmp_path, env=environment)
        assert result.stdout.split() == expected, (words, result.stderr)
    environment["UV_CACHE_DIR"] = str(tmp_path / "another cache")
    result = run("uv", "run", *option[:2], "x.py", cwd=tmp_path, env=environment)
    assert result.returncode and "No solution found" in result.stderr  # which is why the strategy is there
    result = run("uvx", *option, "--with-requirements", "x.py", "python", "x.py", cwd=tmp_path, env=environment)
    assert result.stdout.split() == cpu_builds, result.stderr
