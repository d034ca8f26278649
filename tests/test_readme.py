"""README.md cannot rot: its links lead somewhere, its commands run, its figures have one source."""

import re
import shlex

import pytest
from conftest import REPO, digit, play_mnist, run

README = (REPO / "README.md").read_text()
COMMANDS = re.findall(r"(?m)^    (?:\$ )?((?:uv|uvx|\./|pip|docker).*)", README)
# What other tests run: containers, plain pip, PyTorch's index, notebooks, URLs, a server; and the tests.
ELSEWHERE = re.compile(r"docker|pip install|download\.pytorch|jupyter|YOUR-HOST|tests/|draw\.py$")


def test_length_links_and_the_block_of_train():
    for path, lines, columns in ((REPO / "README.md", 120, 100), (REPO / "tests/README.md", 80, 110)):
        text = path.read_text()
        assert len(text.splitlines()) <= lines and max(map(len, text.splitlines())) <= columns
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert link.startswith("https://") or (path.parent / link).exists(), link
    block = (REPO / "train.py").read_text().split("# ///")[1]
    assert "".join(f"    {line}\n" for line in f"# ///{block}# ///".splitlines()) in README


def test_commands_are_found():
    firsts = ["./train.py", "uv run - < train.py", "uvx --with-requirements train.py python train.py"]
    assert len(COMMANDS) >= 15
    assert all(any(command.startswith(f"{first} ") for command in COMMANDS) for first in firsts)


@pytest.mark.parametrize("command", [command for command in COMMANDS if not ELSEWHERE.search(command)])
def test_command(command, trained, tmp_path):
    """In a folder of its own with the scripts, a small MNIST, and photos of the names in README.md."""
    for path in REPO.glob("*.py"):
        (tmp_path / path.name).symlink_to(path)
    play_mnist(tmp_path)
    (tmp_path / "data/mnist_cnn.pt").write_bytes(trained.weights.read_bytes())
    (tmp_path / "scans").mkdir()
    for name in ("photo.jpg", "scans/shadow.png"):
        digit().save(tmp_path / name)
    with open(REPO / "train.py") as stdin:
        words = shlex.split(command.partition(" < ")[0], comments=True)
        result = run(*words, cwd=tmp_path, stdin=stdin)
    assert result.returncode == 0, result.stderr
    assert "train.py" not in command or "on the 1,000 test images: " in result.stdout
