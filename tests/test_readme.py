"""README.md cannot rot: its links lead somewhere, and its commands run.

A command is an indented line that starts with a program's name. Each is run in a folder
with the scripts, data/, a small MNIST and weights; YOUR-PICTURES are a reader's own.
"""

import re
import shutil

import pytest
from conftest import REPO, SAMPLE, digit, play_mnist, run

README = (REPO / "README.md").read_text(encoding="utf-8")
# What is tested elsewhere, and servers.
ELSEWHERE = "docker|pip install|requirements.txt|jupyter|http://|draw.py|tests/"
LABELS = (SAMPLE / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:]
COMMANDS = re.findall(r"(?m)^    ((?:uv|uvx|pip|docker) .*?)(?:\s+#.*)?$", README)
HERE = [command for command in COMMANDS if not re.search(ELSEWHERE, command)]


def test_links():
    for path in (REPO / "README.md", REPO / "tests/README.md", REPO / "data/README.md"):
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", text)
        for link in map("".join, links):
            target = link.partition("#")[0]
            assert link.startswith("https://") or (path.parent / target).exists(), link


def test_the_block_of_train_stands_in_it():
    source = (REPO / "train.py").read_text(encoding="utf-8")
    block = re.search(r"(?ms)^# /// script$.*?^# ///$", source)[0]
    assert re.sub("(?m)^", "    ", block) in README


@pytest.mark.parametrize("script", ["train.py", "predict.py", "read.py"])
def test_commands_are_found(script):
    assert any(f"uv run {script}" in command for command in HERE)


@pytest.mark.parametrize("command", HERE)
def test_command(command, trained, tmp_path):
    play_mnist(tmp_path)
    for path in [*REPO.glob("*.py"), REPO / "data/ink.pt", REPO / "data/photo.jpg"]:
        # uv knows the script by the file that a link leads to: one environment for all.
        (tmp_path / path.relative_to(REPO)).symlink_to(path)
    shutil.copy(trained.weights, tmp_path / "data")
    (tmp_path / "data/taught").symlink_to(SAMPLE)
    for label in range(10):  # two of each digit
        folder = tmp_path / f"YOUR-PICTURES/{label}"
        folder.mkdir(parents=True)
        for number in [n for n in range(100) if LABELS[n] == label][:2]:
            digit(number).save(folder / f"{number}.png")
    result = run(command, cwd=tmp_path, shell=True)  # for < and |
    assert result.returncode == 0, result.stderr
    assert result.stdout
    if "train.py" in command:
        assert "1,000 test images" in result.stdout
