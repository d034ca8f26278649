"""The scripts run without a clone, without uv, beside other people's projects and on other Pythons."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ENV, REPO, SAMPLE, assert_one_error_line, digit, run
from test_export import export, packages

SHORT = ["--epochs", 0.05, "--data-dir", SAMPLE]
ACCURACY = re.compile(r"Accuracy of SimpleCNN on the 1,000 test images of .*: \d\d\.\d\d %\n\Z")


def assert_trained(result, folder: Path) -> None:
    """train.py went through and left its weights in `folder`, and nothing else."""
    assert result.returncode == 0 and ACCURACY.search(result.stdout), result.stderr[-3000:]
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "data/mnist_cnn.pt"]


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


# A stranger's first line

LAUNCHERS = {  # others stand in README.md, whose commands test_readme.py runs
    "URL": ["uv", "run", "URL"],
    "pipx": ["uvx", "pipx==1.18.4", "run", "--backend", "uv", REPO / "train.py"],  # its pip would fetch 3 GB
    "hatch": ["uvx", "hatch==1.18.2", "run", REPO / "train.py"],
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_train(name, server, empty, tmp_path):
    server.answers["/train.py"] = (REPO / "train.py").read_bytes()
    command = [f"{server.url}train.py" if word == "URL" else word for word in LAUNCHERS[name]]
    folders = ["PIPX_HOME", "PIPX_BIN_DIR", "HATCH_DATA_DIR", "HATCH_CACHE_DIR"]
    environment = ENV | {variable: str(tmp_path / variable) for variable in folders}
    assert_trained(run(*command, *SHORT, cwd=empty, env=environment), empty)


def test_predict_with_published_weights(server, trained, empty, tmp_path):
    """`uv run URL --weights URL digit.png`; what is published in their place is seen at the next run."""
    digit().save(tmp_path / "digit.png")
    server.answers["/predict.py"] = (REPO / "predict.py").read_bytes()
    server.answers["/mnist_cnn.pt"] = trained.weights.read_bytes()
    command = ["uv", "run", f"{server.url}predict.py", "--weights", f"{server.url}mnist_cnn.pt"]
    result = run(*command, tmp_path / "digit.png", cwd=empty)
    label = (SAMPLE / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8]
    assert result.stdout.split()[1:2] == [str(label)] and not list(empty.iterdir()), result.stderr
    server.answers["/mnist_cnn.pt"] = b"<html>Log in</html>"
    assert_one_error_line(run(*command, tmp_path / "digit.png", cwd=empty), "mnist_cnn.pt")


# Other surroundings

THEIRS = """
[project]
name = "theirs"
version = "1"
requires-python = "==2.7.*"
dependencies = ["nosuchpackage-of-theirs"]
[tool.uv]
constraint-dependencies = ["torch<2"]
override-dependencies = ["tqdm==1"]
"""


def test_someone_elses_project(empty):
    """Is ignored, but for its package index, which takes `--no-config`."""
    (empty / "deep").mkdir()
    (empty / "pyproject.toml").write_text(THEIRS)
    (empty / "uv.lock").write_text("nonsense")
    relative = os.path.relpath(REPO / "train.py", empty / "deep")
    assert_trained(run("uv", "run", relative, *SHORT, cwd=empty / "deep"), empty / "deep")
    (empty / "pyproject.toml").write_text(THEIRS + 'index-url = "http://127.0.0.1:9/simple"\n')
    result = run("uv", "run", "--no-config", REPO / "predict.py", "--help", cwd=empty)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_pip(tmp_path, empty):
    """A venv and plain pip with hashes, all 3 GB from the registry; pip reads pylock.toml from 26.1 on."""
    for format in ("requirements.txt", "pylock.toml"):
        assert export("--format", format, "--output", tmp_path / format).returncode == 0
    assert run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path).returncode == 0
    python = tmp_path / "venv/bin/python"

    def pip(*words) -> str:
        environment = {**ENV, "PIP_CONSTRAINT": os.devnull}  # in place of one in pip's own settings
        result = run(python, "-m", "pip", *words, cwd=tmp_path, timeout=1200, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    pip("install", "--no-cache-dir", "--require-hashes", "-r", "requirements.txt")
    frozen = packages(pip("freeze"))
    assert frozen <= packages((tmp_path / "requirements.txt").read_text()) and len(frozen) > 25
    assert_trained(run(python, REPO / "train.py", *SHORT, cwd=empty), empty)
    pip("install", "pip==26.3")
    pip("uninstall", "--yes", "numpy", "tqdm")
    pip("install", "--require-hashes", "-r", "pylock.toml")
    assert packages(pip("freeze")) == frozen
    shutil.rmtree(tmp_path / "venv")  # 5 GB, which pytest would keep


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_python(version, empty, tmp_path):
    """On copies: uv keeps one environment for each path, and that of the original stays as it is."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    python = next(pyenv.glob(f"{version}.*/bin/python{version}"), None) or shutil.which(f"python{version}")
    if not python:
        pytest.skip(f"Python {version} is not on this machine")
    for name, words in {"train.py": SHORT, "predict.py": SHORT[2:]}.items():
        copy = tmp_path / name
        copy.write_text((REPO / name).read_text() + "\nimport platform\nprint(platform.python_version())\n")
        result = run("uv", "run", "--python", python, copy, *words, "--weights", tmp_path / "w.pt", cwd=empty)
        stdout, _, printed = result.stdout.strip().rpartition("\n")
        assert ACCURACY.search(f"{stdout}\n") and printed.startswith(f"{version}."), result.stderr
