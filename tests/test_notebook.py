"""The scripts are notebooks too: jupytext converts them, and every cell runs from top to bottom."""

import json

import pytest
from conftest import REPO, SAMPLE, run

JUPYTER = ["uvx", "--from", "jupytext==1.19.6", "--with", "nbconvert==7.17.2", "--with", "ipykernel==7.4.0"]


@pytest.mark.parametrize("name", ["train", "predict"])
def test_runs_from_top_to_bottom(name, trained, tmp_path):
    """In a folder whose data/mnist is the sample, so that the defaults, which a notebook runs with, need no network."""
    (tmp_path / "data").mkdir()
    for link in ("sample", "mnist"):
        (tmp_path / "data" / link).symlink_to(SAMPLE)
    if name == "predict":
        (tmp_path / "data/mnist_cnn.pt").symlink_to(trained.weights)
    # The kernel is the Python of the command, with the packages of the script.
    python = [*JUPYTER, "--with-requirements", REPO / f"{name}.py", "python", "-m"]
    for words in (["jupytext", "--to", "ipynb", "--output", "x.ipynb", REPO / f"{name}.py"],
                  ["nbconvert", "--to", "notebook", "--execute", "--inplace", "x.ipynb"]):  # fmt: skip
        result = run(*python, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
    cells = json.loads((tmp_path / "x.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["execution_count"] for cell in code)
    outputs = "".join("".join(output.get("text", "")) for cell in code for output in cell["outputs"] if output.get("name") == "stdout")
    assert outputs.startswith("SimpleCNN(\n") and outputs.endswith(trained.stdout.splitlines()[-1] + "\n")
    assert (tmp_path / "data/mnist_cnn.pt").exists()
