"""The scripts are single files: what several of them need stands in each, the same."""

import ast
import re
import tomllib

import pytest
from conftest import REPO, SCRIPTS

COPIED = (
    "SimpleCNN normalize classify Error load_weights Digits find_data read_idx load"
)
COPIED += " MNIST_DIR SAMPLE_DIR convolutions InkNet standardize"


def definitions(script: str) -> dict[str, str]:
    """The text of each function, class and constant of a script."""
    source = (REPO / script).read_text(encoding="utf-8")
    lines = source.splitlines()
    texts = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first_line = min(
                [node, *node.decorator_list], key=lambda n: n.lineno
            ).lineno
            texts[node.name] = "\n".join(lines[first_line - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign):
            texts[ast.unparse(node.targets[0])] = ast.unparse(node.value)
    return texts


@pytest.mark.parametrize("name", COPIED.split())
def test_copies_are_equal(name):
    """Whoever changes SimpleCNN in one script is told where else it stands."""
    scripts = [*SCRIPTS, "data/make_ink.py"]
    texts = {script: definitions(script).get(name) for script in scripts}
    texts = {script: text for script, text in texts.items() if text is not None}
    assert len(texts) > 1, f"{name} stands in {list(texts)} alone"
    if len(set(texts.values())) > 1:
        pytest.fail(f"change {name} in all of {', '.join(texts)}: they differ")


def test_metadata():
    """Every script is a program whose block pins exactly, the same everywhere."""
    programs = [*REPO.glob("*.py"), *REPO.glob("data/*.py")]
    programs += [REPO / "tests/run.py", *REPO.glob("tests/tools/*.py")]
    pins, dates = {}, set()
    for path in programs:
        head, block, _ = path.read_text(encoding="utf-8").split("# ///", 2)
        assert head == "#!/usr/bin/env -S uv run --script\n", path
        metadata = tomllib.loads(re.sub("(?m)^# ?", "", block.removeprefix(" script")))
        assert metadata["requires-python"].startswith(">=3.11"), path
        if metadata["dependencies"]:
            dates.add(metadata["tool"]["uv"]["exclude-newer"])
        for requirement in metadata["dependencies"]:
            name, pin = requirement.split("==")
            assert pins.setdefault(name, pin) == pin, f"{path}: {requirement}"
    assert len(dates) == 1
