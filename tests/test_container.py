"""The Dockerfile, built and run with buildah: the base image is a stand-in (container/base.sh), all else is real.

The registry's torch makes an image of 6 GB. The default build needs PyTorch's own index; an index on loopback plays it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ENV, REPO, SAMPLE, run, uv_run
from test_export import script, serve_index, wheel

BUILDAH = {**ENV, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}
BASE = re.search(r"(?m)^ARG BASE=(.*)$", (REPO / "Dockerfile").read_text())[1]
RAW = "MNIST/raw/t10k-{}-ubyte"


def missing() -> str:
    if os.geteuid():
        return "building an image needs root"
    for tool in ("buildah", "unshare", "chroot"):
        if not shutil.which(tool):
            return f"{tool} is not there"
    if run("buildah", "inspect", BASE, cwd="/", env=BUILDAH).returncode:
        return "there is no base image; tests/container/base.sh makes one"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def buildah(*words, **options) -> str:
    result = run("buildah", *words, cwd="/", env=BUILDAH, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


def build(context: Path, tag: str, *options: str) -> tuple[bool, float]:
    """Build an image; says whether the layer of the dependencies came from the cache, and the seconds that it took."""
    started = time.perf_counter()
    log = buildah("build", "--layers", "--network", "host", "--pull-never", *options, "--tag", tag, str(context), timeout=900)
    seconds = time.perf_counter() - started
    return bool(re.search(r"uv pip sync.*\n(.*\n)?--> Using cache", log)), seconds


def run_image(tag: str, *arguments, volumes=()) -> subprocess.CompletedProcess:
    """`docker run --rm --network none -v … tag arguments`."""
    config = json.loads(buildah("inspect", "--type", "image", tag))["OCIv1"]["config"]
    container = buildah("from", "--pull-never", tag)
    try:
        mounts = [word for volume in volumes for word in ("--volume", volume)]
        return run("unshare", "--net", "buildah", "run", *mounts, container, "--", *config["Entrypoint"], *arguments, cwd="/", env=BUILDAH)
    finally:
        buildah("rm", container)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


@pytest.fixture(scope="module")
def built(trained, tmp_path_factory):
    """The image with the registry's torch, and the sample as there is no data/mnist: `context`, `tag`, `seconds`."""
    context = tmp_path_factory.mktemp("context")
    for name in ("Dockerfile", ".dockerignore", "export_requirements.py", "predict.py", "train.py"):
        shutil.copy(REPO / name, context)
    shutil.copytree(SAMPLE, context / "data/sample")
    shutil.copy(trained.weights, context / "data")
    (context / "requirements.txt").write_text("nonsense\n")  # .dockerignore keeps it out
    (context / ".git").mkdir()
    buildah("rmi", "--prune", "--force")
    cached, seconds = build(context, "mnist-test", "--build-arg", "TORCH=default")
    assert not cached
    size = json.loads(buildah("images", "--json", "mnist-test"))[0]["size"]
    print(f"\nimage with the registry's torch: {size}, built in {seconds:.0f} s")
    yield SimpleNamespace(context=context, tag="mnist-test", seconds=seconds)
    buildah("rmi", "--force", "mnist-test")
    buildah("rmi", "--prune", "--force")


def test_prints_what_predict_prints(built, trained):
    result = run_image(built.tag)
    expected = uv_run("predict.py", "--data-dir", SAMPLE, cwd=trained.folder)
    assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
    assert "no mirror" not in result.stderr and "test images of the sample" in last_line(result.stdout)
    answer = json.loads(run_image(built.tag, "--json").stdout)
    assert answer["dataset"] == "sample" and answer["device"] == "cpu"


def test_holds_no_more_than_it_needs(built):
    container = buildah("from", "--pull-never", built.tag)
    try:
        root = Path(buildah("mount", container))
        files = {str(path.relative_to(root / "mnist")) for path in (root / "mnist").rglob("*") if path.is_file()}
        assert {"predict.py", "requirements.txt", "uv.toml", "data/mnist_cnn.pt"} <= files
        assert {name for name in files if name.startswith("data/")} == {
            "data/mnist_cnn.pt", *(f"data/sample/{RAW.format(part)}" for part in ("images-idx3", "labels-idx1"))
        }  # fmt: skip
        assert len(files) == 6 and "nonsense" not in (root / "mnist/requirements.txt").read_text()
        packages = next((root / "venv/lib").glob("python3*/site-packages"))
        assert list((packages / "torch/__pycache__").glob("*.pyc"))
        # Stored once: as many bytes of wheels in the image as in an installed environment, and no cache of uv's.
        libraries = [path for path in root.rglob("libtorch_cpu.so") if path.is_file()]
        assert len(libraries) == 1 and not (root / "root/.cache/uv").exists()
    finally:
        buildah("rm", container)


def digits(folder: Path) -> None:
    from PIL import Image

    data = (SAMPLE / RAW.format("images-idx3")).read_bytes()
    folder.mkdir()
    for i in range(5):
        Image.frombytes("L", (28, 28), data[16 + 784 * i : 16 + 784 * (i + 1)]).save(folder / f"{i}.png")


def test_mounted_images_and_weights(built, trained, tmp_path):
    digits(tmp_path / "digits")
    result = run_image(built.tag, "/digits", volumes=[f"{tmp_path}/digits:/digits:ro"])
    expected = uv_run("predict.py", tmp_path / "digits", "--json", cwd=trained.folder)
    read = [(Path(line.split()[0]).name, int(line.split()[1])) for line in result.stdout.splitlines()]
    assert read == [(Path(entry["file"]).name, entry["digit"]) for entry in json.loads(expected.stdout)["images"]], result.stderr
    assert len(read) == 5

    uv_run("train.py", "--data-dir", SAMPLE, "--epochs", 0.1, "--weights", tmp_path / "other.pt", cwd=tmp_path)
    result = run_image(built.tag, volumes=[f"{tmp_path}/other.pt:/mnist/data/mnist_cnn.pt:ro"])
    expected = uv_run("predict.py", "--data-dir", SAMPLE, "--weights", tmp_path / "other.pt", cwd=tmp_path)
    assert last_line(result.stdout) == last_line(expected.stdout) != last_line(run_image(built.tag).stdout)


@pytest.fixture
def read_only(built):
    """A function that starts the image's command: its root read-only, its user, no network, and Python as process 1."""
    container = buildah("from", "--pull-never", built.tag)
    root = buildah("mount", container)
    config = json.loads(buildah("inspect", "--type", "image", built.tag))["OCIv1"]["config"]
    assert config["User"] == "mnist" and "/bin/sh" not in config["Entrypoint"]
    setup = f"""set -e
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev
exec chroot --userspec={config["User"]} {root} /usr/bin/env --chdir={config["WorkingDir"]} "$@"
"""

    def start(*command: str) -> subprocess.Popen:
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", setup, "sh", *(command or config["Entrypoint"])]
        return subprocess.Popen(words, env=BUILDAH, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    start.entrypoint = config["Entrypoint"]
    yield start
    buildah("umount", container)
    buildah("rm", container)


def test_read_only_and_no_root(read_only, trained):
    stdout, stderr = read_only("sh", "-c", "id -u; touch here /tmp/here; grep -c : /proc/net/dev").communicate(timeout=60)
    assert stdout.split()[0] != "0" and stdout.split()[1] == "1" and stderr.count("Read-only file system") == 2, (stdout, stderr)
    process = read_only()
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, last_line(stdout)) == (0, last_line(trained.stdout)), stderr


def test_signals_reach_python(read_only):
    """SIGTERM, as from `docker stop`, to process 1, which waits for an image on stdin."""
    process = read_only(*read_only.entrypoint, "-")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        for child in children.read_text().split():
            if b"predict.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "error: stopped by SIGTERM" in stderr, stderr


def test_new_weights_and_script_reuse_the_dependencies(built, tmp_path):
    """With a data/mnist, whose images are taken, and then with one that points out of the context, which the sample replaces."""
    context = built.context
    uv_run("train.py", "--data-dir", SAMPLE, "--epochs", 0.1, "--weights", context / "data/mnist_cnn.pt", cwd=tmp_path)
    (context / "data/mnist/MNIST/raw").mkdir(parents=True)
    images, labels = ((SAMPLE / RAW.format(part)).read_bytes() for part in ("images-idx3", "labels-idx1"))
    (context / "data/mnist" / RAW.format("images-idx3")).write_bytes(images[:4] + (300).to_bytes(4, "big") + images[8 : 16 + 784 * 300])
    (context / "data/mnist" / RAW.format("labels-idx1")).write_bytes(labels[:4] + (300).to_bytes(4, "big") + labels[8:308])
    (context / "data/mnist/MNIST/raw/train-images-idx3-ubyte").write_bytes(bytes(1000))
    cached, seconds = build(context, built.tag, "--build-arg", "TORCH=default")
    print(f"\nnew weights: built again in {seconds:.1f} s, after {built.seconds:.0f} s")
    assert cached
    result = run_image(built.tag)
    expected = uv_run("predict.py", cwd=context)
    assert last_line(result.stdout) == last_line(expected.stdout), result.stderr
    assert "on the 300 test images of data/mnist" in last_line(result.stdout)

    shutil.move(context / "data/mnist", tmp_path / "elsewhere")
    (context / "data/mnist").symlink_to(tmp_path / "elsewhere")
    with open(context / "predict.py", "a") as file:
        file.write("\nprint('changed')\n")
    cached, seconds = build(context, built.tag, "--build-arg", "TORCH=default")
    print(f"\nnew script: built again in {seconds:.1f} s")
    assert cached
    result = run_image(built.tag)
    assert "test images of the sample" in result.stdout and last_line(result.stdout) == "changed", result.stderr


def test_no_weights_is_one_line(built):
    (built.context / "data/mnist_cnn.pt").unlink()
    result = run("buildah", "build", "--layers", "--network", "host", "--pull-never", "--build-arg", "TORCH=default", built.context,
                 cwd="/", env=BUILDAH)  # fmt: skip
    assert result.returncode and "error: there is no data/mnist_cnn.pt; `uv run train.py` makes it" in result.stderr


@pytest.mark.parametrize("torch", ["cpu", "default", "nosuch"])
def test_index_of_torch(torch, server, tmp_path):
    """The default takes the small build from PyTorch's index, and all else as `uv run` does; `default` needs the registry alone."""
    registry = serve_index(server, "registry", [wheel("torch", "7", ["numpy"]), wheel("numpy", "1")])
    # Like the real one: no upload times, other packages than its own, and not always their versions.
    serve_index(server, "whl/cpu", [wheel("torch", "7+cpu", ["numpy"]), wheel("numpy", "1"), wheel("numpy", "0.9")], uploaded=None)
    more = '# [tool.uv]\n# exclude-newer = "2026-02-01T00:00:00Z"\n# exclude-newer-package = { torch = false }\n'
    body = "from importlib.metadata import version\nprint(version('torch'), version('numpy'))\n"
    (tmp_path / "predict.py").write_text(script("torch==7", more=more) + body)
    for name in ("Dockerfile", ".dockerignore", "export_requirements.py"):
        shutil.copy(REPO / name, tmp_path)
    shutil.copytree(SAMPLE, tmp_path / "data/sample")
    (tmp_path / "data/mnist_cnn.pt").touch()
    arguments = ["--build-arg", f"TORCH_INDEX={server.url}whl", *(["--build-arg", f"TORCH={torch}"] if torch != "cpu" else [])]
    tag = f"mnist-test-{torch}"
    try:
        if torch == "nosuch":
            words = ["buildah", "build", "--layers", "--network", "host", "--pull-never", "--env", f"UV_DEFAULT_INDEX={registry}", *arguments, tmp_path]
            result = run(*words, cwd="/", env=BUILDAH)
            assert result.returncode and f"error: {server.url}whl/nosuch has no build of torch for" in result.stderr
            return
        build(tmp_path, tag, "--env", f"UV_DEFAULT_INDEX={registry}", *arguments)
        assert run_image(tag).stdout == {"cpu": "7+cpu 1\n", "default": "7 1\n"}[torch]
        assert any(path.startswith("/whl/cpu/") for path in server.requests) == (torch == "cpu")
    finally:
        run("buildah", "rmi", "--force", tag, cwd="/", env=BUILDAH)
        buildah("rmi", "--prune", "--force")
