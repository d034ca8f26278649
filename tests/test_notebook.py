"""The scripts are notebooks too: jupytext converts them, and every cell runs."""

import json

import pytest
from conftest import REPO, play_mnist, run

JUPYTER = ["uvx", "--from", "jupytext==1.19.6"]
JUPYTER += ["--with", "nbconvert==7.17.2", "--with", "ipykernel==7.4.0"]


@pytest.mark.parametrize("name", ["train", "predict"])
def test_runs_from_top_to_bottom(name, trained, tmp_path):
    """With the defaults, as a notebook has no options."""
    play_mnist(tmp_path)
    (tmp_path / "data/mnist_cnn.pt").write_bytes(trained.weights.read_bytes())
    # The kernel is the Python of the command, with the packages of the script.
    script = REPO / f"{name}.py"
    python = [*JUPYTER, "--with-requirements", script, "python", "-m"]
    convert = ["jupytext", "--to", "ipynb", "--output", "x.ipynb", script]
    execute = ["nbconvert", "--to", "notebook", "--execute", "--inplace", "x.ipynb"]
    for words in (convert, execute):
        result = run(*python, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
    cells = json.loads((tmp_path / "x.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert "SimpleCNN on the 1,000 test images: " in printed
