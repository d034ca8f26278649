"""The Dockerfile, built by buildah on tools/container_base.sh's stand-ins, and run."""

import json
import os
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from conftest import ENV, REPO, SAMPLE, digit, run, uv_run

BUILDAH = ENV | {"STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}
TAG = "mnist-test"


def buildah(*words) -> str:
    result = run("buildah", *words, cwd=Path("/"), env=BUILDAH, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


tools = ["buildah", "unshare", "chroot"]
ready = all(map(shutil.which, tools)) and os.geteuid() == 0
skip = pytest.mark.skipif(not ready, reason="needs root, buildah, unshare and chroot")
pytestmark = [pytest.mark.slow, skip]


def build(context: Path, torch_backend: str) -> None:
    """`docker build --tag mnist-test context`."""
    # Without layers, which are of use to a second build, it takes half the time.
    options = ["--layers=false", "--network=host", "--pull-never", "--tag", TAG]
    buildah("build", *options, f"--build-arg=TORCH_BACKEND={torch_backend}", context)


@pytest.fixture(scope="module")
def context(trained, tmp_path_factory) -> Path:
    """The folder from which the image is built."""
    context = tmp_path_factory.mktemp("context")
    for name in ("Dockerfile", ".dockerignore", "train.py", "predict.py", "read.py"):
        shutil.copy(REPO / name, context)
    shutil.copytree(SAMPLE, context / "data/sample")
    for weights in (trained.weights, REPO / "data/ink.pt"):
        shutil.copy(weights, context / "data")
    return context


@pytest.fixture(scope="module")
def image(context) -> SimpleNamespace:
    """The image: its `config`, and its files below `root`."""
    build(context, torch_backend="")  # for what the registry has
    inspected = json.loads(buildah("inspect", "--type", "image", TAG))
    container = buildah("from", "--pull-never", TAG)
    root = Path(buildah("mount", container))
    yield SimpleNamespace(root=root, config=inspected["OCIv1"]["config"])
    buildah("umount", container)
    buildah("rm", container)
    buildah("rmi", "--force", TAG)


# With an empty network, folders mounted at their places below the root of the image,
# and all of it read-only.
SETUP = """set -e
root=$1 source=$2 target=$1$3
shift 3
mkdir -p $target
mount --bind $root $root
mount --bind $source $target
mount -o remount,bind,ro $root
mount -t proc proc $root/proc
mount --rbind /dev $root/dev
exec chroot "$@"
"""
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", SETUP, "sh"]


def docker_run(image, source: Path, target: str, *command) -> CompletedProcess:
    """`docker run --rm --network none --read-only -v source:target mnist command`."""
    config = image.config
    environment = ["env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"]]
    chroot = [f"--userspec={config['User']}", image.root, *environment]
    words = [*config["Entrypoint"], *(command or config["Cmd"])]
    setup = [*UNSHARE, image.root, source, target]
    return run(*setup, *chroot, *words, cwd=Path("/"))


def test_predicts_by_default(image, context, tmp_path):
    """On the sample, and says what it is."""
    result = docker_run(image, tmp_path, "/scans")
    expected = uv_run("predict.py", "--data-dir", "data/sample", cwd=context)
    assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
    assert "of data/sample, which are among MNIST's training images" in result.stdout
    command = ["predict.py", "--json"]
    answer = json.loads(docker_run(image, tmp_path, "/scans", *command).stdout)
    assert f"{100 * answer['accuracy']:.2f} %" in expected.stdout


def test_predicts_on_mounted_mnist(image, tmp_path):
    tmp_path.chmod(0o755)  # pytest's are private; the image's user is nobody
    shutil.copytree(SAMPLE / "MNIST", tmp_path / "MNIST")
    result = docker_run(image, tmp_path, "/mnist/data/mnist")
    assert "SimpleCNN on the 1,000 test images: " in result.stdout, result.stderr
    assert not result.stderr


def test_reads_mounted_pictures(image, context, tmp_path):
    tmp_path.chmod(0o755)
    for number in range(5):
        page = digit(number).resize((280, 280))
        page.save(tmp_path / f"{number}.png")
    result = docker_run(image, tmp_path, "/scans", "read.py", "/scans")
    assert result.returncode == 0, result.stderr
    expected = uv_run("read.py", tmp_path, cwd=context)
    numbers = r"(?m)^\S+ +(\d+) "
    found = re.findall(numbers, result.stdout)
    assert found == re.findall(numbers, expected.stdout)
    assert len(found) == 5


def test_no_root_no_network_nothing_to_write(image, tmp_path):
    code = """import os, socket
assert os.getuid(), "root"
assert [name for _, name in socket.if_nameindex()] == ["lo"], "a network"
open("/tmp/file", "w")"""
    result = docker_run(image, tmp_path, "/scans", "-c", code)
    assert "Read-only file system: '/tmp/file'" in result.stderr


def test_holds_no_more_than_it_needs(image):
    home, sample = image.root / "mnist", "data/sample/MNIST/raw/t10k-"
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    data = {f"{sample}images-idx3-ubyte", f"{sample}labels-idx1-ubyte"}
    data |= {"data/mnist_cnn.pt", "data/ink.pt"}
    assert files == {"predict.py", "read.py"} | data
    assert (home / "read.py").read_bytes() == (REPO / "read.py").read_bytes()
    assert len(list(image.root.rglob("libtorch_cpu.so"))) == 1
    assert not list(image.root.rglob("*.whl")) + list(image.root.glob("*bin/uv"))


def test_torch_backend_is_handed_to_uv(context):
    """PyTorch's index may not be in reach, so a wrong name stands for a right one."""
    with pytest.raises(AssertionError, match="unknown variant `cpu123`"):
        build(context, torch_backend="cpu123")
