"""README.md cannot rot: its links lead somewhere, its commands run, its figures have one source."""

import re
import shlex

import pytest
from conftest import ENV, REPO, SAMPLE, run

README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", README)
COMMANDS = [line.strip().removeprefix("$ ") for block in BLOCKS for line in block.splitlines() if re.match(r"    (\$ )?(uv|uvx|\./|pip|docker)", line)]
# What other tests run: containers, plain pip, PyTorch's index, notebooks, URLs, torchrun; the tests themselves; a server.
ELSEWHERE = re.compile(r"docker|pip install|download\.pytorch|jupyter|YOUR-HOST|torchrun|tests/|draw\.py$")


def test_length_and_links():
    for path, lines, columns in ((REPO / "README.md", 120, 100), (REPO / "tests/README.md", 80, 110)):
        text = path.read_text()
        assert len(text.splitlines()) <= lines and max(map(len, text.splitlines())) <= columns
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert link.startswith("https://") or (path.parent / link).exists(), link


def test_block_is_that_of_train():
    block = (REPO / "train.py").read_text().split("# ///")[1]
    assert "".join(f"    {line}\n" for line in f"# ///{block}# ///".splitlines()) in README


@pytest.mark.parametrize("command", [command for command in COMMANDS if not ELSEWHERE.search(command)])
def test_command(command, trained, tmp_path):
    """In a folder of its own with the scripts, the sample as MNIST, and photos of the names in README.md."""
    from PIL import Image

    for path in [*REPO.glob("*.py")]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist").symlink_to(SAMPLE)
    (tmp_path / "data/mnist_cnn.pt").write_bytes(trained.weights.read_bytes())
    (tmp_path / "scans").mkdir()
    image = (SAMPLE / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:800]
    for name in ("photo.jpg", "scans/shadow.png"):
        Image.frombytes("L", (28, 28), image).save(tmp_path / name)
    with open(REPO / "train.py") as stdin:
        words = shlex.split(command.partition(" < ")[0], comments=True)
        result = run(*words, cwd=tmp_path, env=ENV, stdin=stdin)
    assert result.returncode == 0, result.stderr


def test_commands_are_found():
    assert len(COMMANDS) >= 15, COMMANDS
