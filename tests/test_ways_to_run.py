"""The scripts run as notebooks, without a clone, without uv, and on other Pythons."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import (
    ENV,
    REPO,
    SAMPLE,
    SCRIPTS,
    assert_one_error_line,
    digit,
    files_below,
    play_mnist,
    run,
)
from test_export import FORMATS, export, packages

ACCURACY = r"Accuracy of SimpleCNN on the 1,000 .*: \d\d\.\d\d %"
SHORT = ["--epochs", 0.05, "--data-dir", SAMPLE]


@pytest.fixture
def empty(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


# %% Notebooks
JUPYTER = ["uvx", "--from", "jupytext==1.19.6"]
JUPYTER += ["--with", "nbconvert==7.17.2", "--with", "ipykernel==7.4.0"]
MORE = {  # cells after the script's
    # The training can be looked at; %run has arguments of its own.
    "train": f"""assert len(history) == 312
before = open("data/mnist_cnn.pt", "rb").read()
%run {REPO}/train.py --data-dir {SAMPLE} --epochs 0.05 --weights w.pt
assert len(history) == 1 and open("data/mnist_cnn.pt", "rb").read() == before""",
    "predict": f"%run {REPO}/predict.py --data-dir {SAMPLE}",
}


@pytest.mark.parametrize("name", MORE)
def test_notebook(name, trained, tmp_path):
    """jupytext converts it, and every cell runs, with the defaults."""
    play_mnist(tmp_path)
    shutil.copy(trained.weights, tmp_path / "data")
    script, file = REPO / f"{name}.py", tmp_path / "x.ipynb"
    # The kernel is the Python of the command, with the packages of the script.
    python = [*JUPYTER, "--with-requirements", script, "python", "-m"]
    convert = ["jupytext", "--to", "ipynb", "--output", file, script]
    result = run(*python, *convert, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert len(notebook["cells"]) > 5
    more = {"cell_type": "code", "metadata": {}, "outputs": [], "source": MORE[name]}
    notebook["cells"].append(more | {"execution_count": None, "id": "more"})
    file.write_text(json.dumps(notebook), encoding="utf-8")
    execute = ["nbconvert", "--to", "notebook", "--execute", "--inplace", file]
    result = run(*python, *execute, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    text = file.read_text(encoding="utf-8")
    assert "SimpleCNN on the 1,000 test images: " in text
    assert text.count("SimpleCNN on the 1,000 ") == 2


# %% From a URL
FROM_URL = {"predict.py": ACCURACY, "read.py": "digit.png +1 "}  # what is printed


@pytest.mark.parametrize("script", FROM_URL)
def test_published_weights(script, server, trained, empty, tmp_path):
    """What is published in their place is seen at the next run."""
    digit().resize((280, 280)).save(tmp_path / "digit.png")
    for path in (REPO / script, trained.weights, REPO / "data/ink.pt"):
        server.answers[f"/{path.name}"] = path.read_bytes()
    command = ["uv", "run", server.url + script]
    command += ["--weights", f"{server.url}mnist_cnn.pt"]
    if script == "predict.py":
        command += ["--data-dir", SAMPLE]
    else:
        command += ["--ink", f"{server.url}ink.pt", tmp_path / "digit.png"]
    result = run(*command, cwd=empty)
    assert re.search(FROM_URL[script], result.stdout), result.stderr
    assert not list(empty.iterdir())
    server.answers["/mnist_cnn.pt"] = b"<html>Log in</html>"
    assert_one_error_line(run(*command, cwd=empty), "mnist_cnn.pt")


# %% Other installers, builds and Pythons
LINE = '# torch-backend = "cpu"\n'  # README.md's, below [tool.uv]
INDEX = "https://download.pytorch.org/whl/cpu/torch/"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_small_build(script, tmp_path):
    """Not every machine reaches PyTorch's index, so what counts is that uv asks it."""
    source = (REPO / script).read_text(encoding="utf-8")
    small = source.replace("# [tool.uv]\n", "# [tool.uv]\n" + LINE)
    assert small.count(LINE) == 1
    resolve = ["uv", "sync", "-v", "--dry-run", "--script", script]
    for text, asked in ((small, True), (source, False)):
        (tmp_path / script).write_text(text, encoding="utf-8")
        result = run(*resolve, cwd=tmp_path, env=ENV | {"UV_HTTP_RETRIES": "0"})
        assert (INDEX in result.stderr) == asked, result.stderr
        # Where the index answers, this is its build.
        assert result.returncode or ("+cpu" in result.stderr) == asked, result.stderr


@pytest.mark.slow
def test_pip(tmp_path, empty):
    """A new environment, plain pip and hashes: all of 3 GB from the registry."""
    for format in FORMATS:
        path = tmp_path / format
        assert export("--format", format, "--output", path, cwd=REPO).returncode == 0
    venv = tmp_path / "venv"
    made = run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    python = venv / ("Scripts" if os.name == "nt" else "bin") / "python"
    # In place of a constraint in the user's settings.
    options = {"env": ENV | {"PIP_CONSTRAINT": os.devnull}, "timeout": 1200}

    def pip(*words) -> set[str]:
        """The packages after this command."""
        result = run(python, "-m", "pip", *words, cwd=tmp_path, **options)
        assert result.returncode == 0, result.stderr
        return packages(run(python, "-m", "pip", "freeze", **options).stdout)

    install = ["install", "--no-cache-dir", "--require-hashes", "-r"]
    frozen = pip(*install, "requirements.txt")
    assert frozen <= packages((tmp_path / "requirements.txt").read_text())
    assert len(frozen) > 25
    result = run(python, REPO / "train.py", *SHORT, cwd=empty)
    assert re.search(ACCURACY, result.stdout), result.stderr[-3000:]
    assert files_below(empty) == {"mnist_cnn.pt"}
    pip("install", "pip==26.3")  # the first that reads pylock.toml is 26.1
    pip("uninstall", "--yes", "numpy", "tqdm")
    assert pip(*install, "pylock.toml") == frozen
    shutil.rmtree(venv)  # 5 GB, which pytest would keep


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_python(version, empty, tmp_path):
    """On copies: uv keeps one environment for each path; the original's stays."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*pyenv.glob(f"{version}.*/bin/python{version}")]
    python = found[0] if found else shutil.which(f"python{version}")
    if not python:
        pytest.skip(f"no Python {version} on this machine")
    for name, options in {"train.py": SHORT, "predict.py": SHORT[2:]}.items():
        copy, source = tmp_path / name, (REPO / name).read_text(encoding="utf-8")
        report = "\nimport platform\nprint('Python', platform.python_version())\n"
        copy.write_text(source + report, encoding="utf-8")
        command = ["uv", "run", "--python", python, copy, *options]
        result = run(*command, "--weights", tmp_path / "w.pt", cwd=empty, timeout=900)
        assert re.search(ACCURACY, result.stdout), result.stderr
        assert f"Python {version}." in result.stdout
