"""The Dockerfile, built and run with buildah. Only its base image is a stand-in (container/base.sh)."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ENV, REPO, SAMPLE, digit, run, uv_run

BUILDAH = {**ENV, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}
BASE = re.search(r"(?m)^ARG BASE=(.*)$", (REPO / "Dockerfile").read_text())[1]
TAG = "mnist-test"

lacking = [tool for tool in ("buildah", "unshare", "chroot") if not shutil.which(tool)]
if not lacking and run("buildah", "inspect", BASE, cwd="/", env=BUILDAH).returncode:
    lacking = [BASE, "which tests/container/base.sh makes"]
lacking += ["root"] if os.geteuid() else []
needs_buildah = pytest.mark.skipif(bool(lacking), reason=f"not here: {', '.join(lacking)}")
pytestmark = [pytest.mark.slow, needs_buildah]


def buildah(*words, **options) -> str:
    result = run("buildah", *words, cwd="/", env=BUILDAH, timeout=900, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


def build(context: Path, tag: str = TAG, index: str = "", *options: str) -> str:
    """`docker build --build-arg UV_INDEX=index --tag tag context`; returns the log."""
    words = ["--layers", "--network=host", "--pull-never", f"--build-arg=UV_INDEX={index}", *options]
    return buildah("build", *words, "--tag", tag, context)


def run_image(tag: str, *arguments, volumes=()) -> subprocess.CompletedProcess:
    """`docker run --rm --network none -v … tag arguments`."""
    config = json.loads(buildah("inspect", "--type", "image", tag))["OCIv1"]["config"]
    container = buildah("from", "--pull-never", tag)
    mounts = [f"--volume={volume}:ro" for volume in volumes]
    command = ["buildah", "run", *mounts, container, "--", *config["Entrypoint"], *arguments]
    try:
        return run("unshare", "--net", *command, cwd="/", env=BUILDAH)
    finally:
        buildah("rm", container)


@pytest.fixture(scope="module")
def context(trained, tmp_path_factory):
    """The folder from which the image is built."""
    context = tmp_path_factory.mktemp("context")
    for name in ("Dockerfile", ".dockerignore", "predict.py", "train.py"):
        shutil.copy(REPO / name, context)
    shutil.copytree(SAMPLE, context / "data/sample")
    shutil.copy(trained.weights, context / "data")
    build(context)
    yield context
    buildah("rmi", "--force", TAG)
    buildah("rmi", "--prune", "--force")


@pytest.fixture
def root(context):
    """The file system of the image."""
    container = buildah("from", "--pull-never", TAG)
    yield Path(buildah("mount", container))
    buildah("umount", container)
    buildah("rm", container)


def test_prints_what_predict_prints(context):
    result = run_image(TAG)
    expected = uv_run("predict.py", "--data-dir", "data/sample", cwd=context)
    assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
    assert "of the sample" in result.stdout and "download" not in result.stderr
    assert json.loads(run_image(TAG, "--json").stdout)["dataset"] == "sample"


def test_mounted_images_and_weights(context, tmp_path):
    (tmp_path / "digits").mkdir()
    for number in range(5):
        digit(number).save(tmp_path / f"digits/{number}.png")
    result = run_image(TAG, "/digits", volumes=[f"{tmp_path}/digits:/digits"])
    expected = uv_run("predict.py", tmp_path / "digits", cwd=context)
    digits = [[line.split()[1] for line in text.splitlines()] for text in (result.stdout, expected.stdout)]
    assert digits[0] == digits[1] and len(digits[0]) == 5, result.stderr

    uv_run("train.py", "--data-dir", SAMPLE, "--epochs", 0.1, "--weights", "other.pt", cwd=tmp_path)
    volumes = [f"{tmp_path}/other.pt:/mnist/data/mnist_cnn.pt", f"{SAMPLE}:/data"]
    result = run_image(TAG, "--data-dir", "/data", volumes=volumes)
    expected = uv_run("predict.py", "--data-dir", SAMPLE, "--weights", tmp_path / "other.pt", cwd=tmp_path)
    assert result.stdout == expected.stdout.replace(str(SAMPLE), "/data"), result.stderr


def test_read_only_and_no_root(root):
    """As process 1 of the image's user, on a read-only root without a network."""
    config = json.loads(buildah("inspect", "--type", "image", TAG))["OCIv1"]["config"]
    setup = f"""set -e
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev
exec chroot --userspec={config["User"]} {root} /usr/bin/env --chdir={config["WorkingDir"]} "$@"
"""
    start = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", setup, "sh"]
    result = run(*start, "sh", "-c", "id -u; touch /tmp/here; grep -c : /proc/net/dev", cwd="/", env=BUILDAH)
    assert result.stdout.split()[0] != "0" and result.stdout.split()[1] == "1", result.stderr
    assert "Read-only file system" in result.stderr
    result = run(*start, *config["Entrypoint"], cwd="/", env=BUILDAH)
    assert result.returncode == 0 and "of the sample: " in result.stdout, result.stderr


def test_holds_no_more_than_it_needs(context, root):
    files = {str(path.relative_to(root / "mnist")) for path in (root / "mnist").rglob("*") if path.is_file()}
    sample = {f"data/sample/MNIST/raw/t10k-{part}-ubyte" for part in ("images-idx3", "labels-idx1")}
    assert files == {"predict.py", "requirements.txt", "data/mnist_cnn.pt", *sample}
    assert len(list((root / "venv").rglob("libtorch_cpu.so"))) == 1 and not (root / "root/.cache/uv").exists()


def test_builds_again(context):
    """From the cache when weights and script change; not at all without weights."""
    with open(context / "predict.py", "a") as script, open(context / "data/mnist_cnn.pt", "ab") as weights:
        script.write("\nprint('changed')\n")
        weights.write(b"changed")
    assert re.search(r"uv pip sync.*\n(.*\n)?--> Using cache", build(context))
    (context / "data/mnist_cnn.pt").unlink()
    with pytest.raises(AssertionError, match="data/mnist_cnn.pt"):
        build(context)
