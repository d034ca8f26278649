"""The scripts are notebooks too: jupytext converts them, and every cell runs from top to bottom."""

import json

import pytest
from conftest import REPO, play_mnist, run

JUPYTER = ["uvx", "--from", "jupytext==1.19.6", "--with", "nbconvert==7.17.2", "--with", "ipykernel==7.4.0"]


@pytest.mark.parametrize("name", ["train", "predict"])
def test_runs_from_top_to_bottom(name, trained, tmp_path):
    """With the defaults, as a notebook has no options."""
    play_mnist(tmp_path)
    (tmp_path / "data/mnist_cnn.pt").write_bytes(trained.weights.read_bytes())
    # The kernel is the Python of the command, with the packages of the script.
    python = [*JUPYTER, "--with-requirements", REPO / f"{name}.py", "python", "-m"]
    convert = ["jupytext", "--to", "ipynb", "--output", "x.ipynb", REPO / f"{name}.py"]
    for words in convert, ["nbconvert", "--to", "notebook", "--execute", "--inplace", "x.ipynb"]:
        result = run(*python, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
    cells = json.loads((tmp_path / "x.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["execution_count"] for cell in code)
    printed = [line for cell in code for output in cell["outputs"] for line in output.get("text", [])]
    assert "SimpleCNN on the 1,000 test images: " in "".join(printed)
