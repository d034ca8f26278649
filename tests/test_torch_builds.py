"""The CPU build of torch, by `uv run` and in the image. A folder stands in for PyTorch's package index."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, run
from test_container import build, buildah, needs_buildah, run_image

PRINT = "from importlib.metadata import version\nprint(version('torch'), version('numpy'))\n"


def make_index(folder: Path, **versions: str) -> str:
    """The URL of a package index of empty wheels, which need numpy; like PyTorch's without upload times."""
    for name, version in versions.items():
        (folder / name).mkdir(parents=True)
        file = f"{name}-{version}-py3-none-any.whl"
        (folder / name / "index.html").write_text(f'<a href="{file}">{file}</a>')
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "Requires-Dist: numpy\n" if name != "numpy" else ""
        with zipfile.ZipFile(folder / name / file, "w") as wheel:
            info = f"{name}-{version}.dist-info"
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder.as_uri()


def own_pins(script: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """A script's metadata, the versions of torch and torchvision in it, and those of their CPU builds."""
    block = "# /// script\n" + re.search(r"(?s)# /// script\n(.*?# ///\n)", (REPO / script).read_text())[1]
    pins = dict(re.findall('"(torch|torchvision)==([^"]+)"', block))
    return block, pins, {name: f"{version}+cpu" for name, version in pins.items()}


def test_uv_run(tmp_path):
    """The README's line, on train.py's own metadata."""
    block, pins, cpu_pins = own_pins("train.py")
    (tmp_path / "x.py").write_text(block + PRINT)
    index = make_index(tmp_path / "cpu", **cpu_pins, numpy="1.0")
    cpu = ["--index", index, "--index-strategy", "unsafe-best-match"]
    for words, expected in (
        (["--index", make_index(tmp_path / "registry", **pins)], pins["torch"]),
        (cpu, pins["torch"]),  # satisfies the pin, so uv leaves it
        (["--upgrade", *cpu], cpu_pins["torch"]),
        ([], cpu_pins["torch"]),  # and stays
    ):
        result = run("uv", "run", *words, "x.py", cwd=tmp_path)
        assert result.stdout.split()[:1] == [expected] and " 1.0" not in result.stdout, (words, result.stderr)


@pytest.mark.slow
@needs_buildah
def test_image(tmp_path):
    """The Dockerfile's UV_INDEX, on predict.py's own metadata."""
    block, _, cpu_pins = own_pins("predict.py")
    shutil.copytree(REPO / "data/sample", tmp_path / "data/sample")
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(REPO / name, tmp_path)
    (tmp_path / "predict.py").write_text(block + PRINT)
    (tmp_path / "data/mnist_cnn.pt").touch()
    index = make_index(tmp_path / "cpu", **cpu_pins, numpy="1.0")
    build(tmp_path, "mnist-test-cpu", index, f"--volume={tmp_path}/cpu:{tmp_path}/cpu:ro")
    torch_version, numpy_version = run_image("mnist-test-cpu").stdout.split()
    assert torch_version == cpu_pins["torch"] and numpy_version > "1.0"
    buildah("rmi", "--force", "mnist-test-cpu")
    buildah("rmi", "--prune", "--force")
