"""Train and predict end to end, on the sample and, where it is there, on MNIST itself."""

import ast
import gzip
import hashlib
import json
import re
import sys
import time
import tomllib

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import MNIST, REPO, SAMPLE, assert_one_error_line, real_mnist, run, run_with_mirrors, uv_run

PRINTED = """SimpleCNN(
  (conv1): Conv2d(1, 32, kernel_size=(3, 3), stride=(1, 1))
  (conv2): Conv2d(32, 64, kernel_size=(3, 3), stride=(1, 1))
  (fc1): Linear(in_features=1600, out_features=128, bias=True)
  (fc2): Linear(in_features=128, out_features=10, bias=True)
)
"""
SHAPES = {
    "conv1.weight": (32, 1, 3, 3), "conv1.bias": (32,), "conv2.weight": (64, 32, 3, 3), "conv2.bias": (64,),
    "fc1.weight": (128, 1600), "fc1.bias": (128,), "fc2.weight": (10, 128), "fc2.bias": (10,),
}  # fmt: skip
FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
DEAD = ["http://127.0.0.1:9/"]  # the discard port: nobody listens


class TheirCNN(nn.Module):
    """The post's network as somebody else would write it, for the exchange of weights."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(1600, 128), nn.Linear(128, 10)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def their_accuracy(weights, data_dir) -> float:
    """The accuracy by a network and a reader that share nothing with the scripts."""
    raw = data_dir / "MNIST/raw"
    images = torch.tensor(list((raw / FILES[2]).read_bytes()[16:]), dtype=torch.float32).view(-1, 1, 28, 28)
    labels = torch.tensor(list((raw / FILES[3]).read_bytes()[8:]))
    model = TheirCNN()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    with torch.no_grad():
        digits = torch.cat([model(batch).argmax(1) for batch in ((images / 255 - 0.1307) / 0.3081).split(1000)])
    return (digits == labels).double().mean().item()


def last_line(stdout: str) -> str:
    return stdout.splitlines()[-1]


# The network and its file


def test_network(train, predict):
    for script in (train, predict):
        model = script.SimpleCNN()
        assert f"{model}\n" == PRINTED
        assert sum(p.numel() for p in model.parameters()) == 225_034
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == SHAPES
        theirs = TheirCNN()
        theirs.load_state_dict(model.state_dict())
        x = torch.randn(5, 1, 28, 28)
        torch.testing.assert_close(model(x), theirs(x))


def test_normalize(train):
    images = torch.arange(256, dtype=torch.uint8).repeat(28 * 28 // 256 + 1)[: 28 * 28].view(1, 28, 28)
    torch.testing.assert_close(train.normalize(images)[0, 0], (images[0] / 255 - 0.1307) / 0.3081)


def test_weights_file(trained):
    state = torch.load(trained.weights, weights_only=True)
    assert type(state) is dict or type(state).__name__ == "OrderedDict"
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == SHAPES
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not tensor.requires_grad
        assert tensor.stride() == torch.empty(SHAPES[name]).stride(), name


def test_copies_in_both_scripts_are_equal():
    """What stands in both scripts under one name is the same text."""
    sources = [(REPO / name).read_text() for name in ("train.py", "predict.py")]
    ours, theirs = ({node.name: ast.get_source_segment(source, node) for node in ast.parse(source).body if hasattr(node, "name")} for source in sources)  # fmt: skip
    shared = (ours.keys() & theirs.keys()) - {"parse", "run"}
    assert {"SimpleCNN", "load", "choose_data", "fetch", "write", "classify", "normalize", "main", "stop", "report"} <= shared
    for name in shared:
        assert ours[name] == theirs[name], name


# Training and predicting as a user does


def test_train_prints_the_network_and_the_accuracy(trained):
    assert trained.stdout.startswith(PRINTED)
    match = re.fullmatch(r"Accuracy of SimpleCNN on the 1,000 test images of the sample: (\d\d\.\d\d) %", last_line(trained.stdout))
    assert match and float(match[1]) >= 98.0
    assert len(trained.stdout.splitlines()) == len(PRINTED.splitlines()) + 1


def test_predict_repeats_the_figure(trained):
    result = uv_run("predict.py", "--data-dir", SAMPLE, cwd=trained.folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(PRINTED)
    assert last_line(result.stdout) == last_line(trained.stdout)
    assert "have seen these images" in result.stderr


def test_another_program_reads_the_weights(trained):
    assert f"{100 * their_accuracy(trained.weights, SAMPLE):.2f} %" in last_line(trained.stdout)


def test_predict_reads_the_weights_of_another_program(tmp_path):
    torch.manual_seed(1)
    torch.save(TheirCNN().state_dict(), tmp_path / "theirs.pt")
    result = uv_run("predict.py", "--data-dir", SAMPLE, "--weights", "theirs.pt", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["accuracy"] == pytest.approx(their_accuracy(tmp_path / "theirs.pt", SAMPLE))


def test_same_seed_same_bytes_and_json(tmp_path):
    """Two trainings with one seed and one with another; their JSON; progress stays off stdout."""
    results = []
    for name, seed in (("a.pt", 3), ("deep/er/b.pt", 3), ("c.pt", 4)):
        result = uv_run("train.py", "--data-dir", SAMPLE, "--epochs", 0.5, "--batch-size", 100, "--lr", 2e-3, "--seed", seed,
                        "--weights", name, "--json", "--device", "cpu", cwd=tmp_path)  # fmt: skip
        results.append(json.loads(result.stdout))
        assert "step 20 of 20" in result.stderr and "\r" not in result.stderr
    a, b, c = ((tmp_path / result["weights"]).read_bytes() for result in results)
    assert a == b != c
    assert {key: results[2][key] for key in ("seed", "epochs", "total", "dataset", "device", "weights")} == {
        "seed": 4, "epochs": 0.5, "total": 1000, "dataset": "sample", "device": "cpu", "weights": "c.pt"
    }  # fmt: skip
    assert results[0]["accuracy"] == results[0]["correct"] / 1000 and 0 < results[0]["loss"] < 2.5 and results[0]["seconds"] > 0
    assert results[0]["torch"] == torch.__version__.split("+")[0] and results[0]["python"].startswith("3.")
    assert results[0]["torchvision"]


def test_predict_json(trained):
    result = uv_run("predict.py", "--data-dir", SAMPLE, "--json", "--batch-size", 37, cwd=trained.folder)
    answer = json.loads(result.stdout)
    assert f"{100 * answer['accuracy']:.2f} %" in last_line(trained.stdout)
    assert answer["correct"] == round(answer["accuracy"] * 1000) and answer["dataset"] == "sample"
    assert answer["weights"] == "data/mnist_cnn.pt" and {"loss", "total", "device", "python", "torch", "torchvision"} <= answer.keys()


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_help_names_each_option_and_its_default(script, tmp_path):
    result = uv_run(script, "--help", cwd=tmp_path)
    options = re.findall(r"add\(\"(--[a-z-]+)\"", (REPO / script).read_text())
    assert len(options) >= 5 and all(option in result.stdout for option in options)
    assert result.stdout.count("(default") >= len(options) and "data/mnist_cnn.pt" in result.stdout


def test_other_data_in_the_same_layout_do_not_pass_for_mnist(trained, tmp_path):
    raw = tmp_path / "fashion/MNIST/raw"
    raw.mkdir(parents=True)
    data = bytearray((SAMPLE / "MNIST/raw" / FILES[2]).read_bytes())
    data[-1] ^= 1
    (raw / FILES[2]).write_bytes(data)
    (raw / FILES[3]).write_bytes((SAMPLE / "MNIST/raw" / FILES[3]).read_bytes())
    result = uv_run("predict.py", "--data-dir", "fashion", "--weights", trained.weights, cwd=tmp_path)
    assert re.match(r"Accuracy of SimpleCNN on the 1,000 test images of fashion: ", last_line(result.stdout)), result.stderr


def test_importing_runs_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); import train, predict; assert 'torchvision' not in sys.modules and 'torch._dynamo' not in sys.modules"  # fmt: skip
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_training_starts_without_dynamo(tmp_path):
    """torch._dynamo costs seconds of start-up; a training must not pull it in."""
    code = f"""import sys, torch; sys.path.insert(0, {str(REPO)!r}); import train
train.train(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8), batch_size=4, epochs=1)
assert 'torch._dynamo' not in sys.modules"""
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_muon(train):
    """Each parameter, decayed, moves by `lr` in every direction of its gradient; the small ones by half of it."""
    torch.manual_seed(0)
    model, undecayed = train.SimpleCNN(), train.SimpleCNN()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    undecayed.load_state_dict(before)
    for p, other in zip(model.parameters(), undecayed.parameters()):
        p.grad = other.grad = torch.randn_like(p)
    train.Muon(model, 0.1, torch.float32).step(0.01)
    train.Muon(undecayed, 0.0, torch.float32).step(0.01)
    for (name, p), other in zip(model.named_parameters(), undecayed.parameters()):
        torch.testing.assert_close(p, other - 0.01 * 0.1 * before[name])
        moved = (before[name] - other.detach()).view(len(p), -1)
        values = torch.linalg.svdvals(moved) / (0.01 if name in ("conv2.weight", "fc1.weight") else 0.005)
        assert 0.5 < values.min() and values.max() < 1.5 and (moved * p.grad.view(len(p), -1)).sum() > 0, (name, values)


def test_muon_has_momentum(train):
    """After gradients in two directions, Nesterov's look-ahead moves along their decayed sum, not along the last alone."""
    model = train.SimpleCNN()
    optimizer = train.Muon(model, 0.0, torch.float32)
    first, second = torch.eye(128, 1600), torch.eye(128, 1600).roll(200, 1)
    for gradient in (first, second):
        before = model.fc1.weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        model.fc1.weight.grad = gradient
        optimizer.step(0.01)
    moved = before - model.fc1.weight.detach()
    assert (moved * first).sum() / (moved * second).sum() == pytest.approx(0.81 / 1.9, rel=1e-3)


def test_distort(train):
    """Nothing moves by 0; each of the two distorts as far as it says, differently in each image; a share is that of the whole."""
    places = (torch.arange(28.0) - 13.5).expand(28, 28)
    x = torch.stack([places, places.T]).unsqueeze(1)  # each pixel's value is its place, so that distorted images say where they look
    assert torch.allclose(train.distort(x, 0, 0), x, atol=1e-5)
    x = x.repeat(200, 1, 1, 1)
    inner = (slice(None), 0, slice(8, -8), slice(8, -8))  # nothing of it looks beyond the edge
    for name, amounts, furthest in (("strength", (1, 0), 5.5 * 0.4), ("shift", (0, 2), 2)):
        torch.manual_seed(0)
        whole = train.distort(x, *amounts)
        moved = (whole - x)[inner]
        assert 0.8 * furthest < moved.abs().max() < 1.05 * furthest and moved.mean().abs() < 0.15, name
        centre = moved[:, 5:7, 5:7].mean((1, 2))
        assert (centre.std() > 0.5) == (name == "shift"), name  # the other leaves the middle where it is
        assert (moved.flatten(1).std(1) < 1e-4).all() == (name == "shift"), name  # that is the same everywhere
        assert len({round(float(image[0, 0]), 4) for image in moved}) > 380, name
        torch.manual_seed(0)
        assert torch.allclose(train.distort(x, *amounts, slice(1, None, 3)), whole[1::3], atol=1e-5), name
    torch.manual_seed(0)
    across, down = (train.distort(x, 1, 0) - x)[inner].view(200, 2, 12, 12).transpose(0, 1)
    for slopes, limit in (((across[:, 0, 1] - across[:, 0, 0]), 0.1), ((across[:, 1, 0] - across[:, 0, 0]), 0.3),
                          ((down[:, 0, 1] - down[:, 0, 0]), 0.2), ((down[:, 1, 0] - down[:, 0, 0]), 0.1)):  # fmt: skip
        assert 0.9 * limit < slopes.abs().max() < limit + 1e-4 and slopes.mean().abs() < 0.2 * limit


# Data


def idx(shape, data: bytes, type_code=8) -> bytes:
    return bytes([0, 0, type_code, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


def test_load(train):
    images, labels = train.load(SAMPLE, "train")
    assert images.shape == (4000, 28, 28) and images.dtype == labels.dtype == torch.uint8 and labels.bincount().tolist() == [400] * 10
    test_images, test_labels = train.load(SAMPLE, "test")
    assert test_images.shape == (1000, 28, 28) and test_labels.bincount().tolist() == [100] * 10
    assert not {bytes(image.numpy()) for image in images} & {bytes(image.numpy()) for image in test_images}


def test_load_reads_idx_files_and_nothing_else(train, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    pixels, digits = bytes(i % 251 for i in range(3 * 784)), bytes([9, 0, 5])

    def load(images: bytes, labels: bytes):
        (raw / FILES[2]).write_bytes(images)
        (raw / FILES[3]).write_bytes(labels)
        return train.load(tmp_path, "test")

    whole = idx((3, 28, 28), pixels), idx((3,), digits)
    images, labels = load(*whole)
    assert bytes(images.numpy()) == pixels and images.shape == (3, 28, 28) and labels.tolist() == [9, 0, 5]
    for broken in (b"", b"\0", whole[0][:-1], whole[0] + b"\0", idx((2, 28, 28), pixels[784:]), idx((3, 28, 28), pixels, 13), idx((3, 14, 56), pixels),
                   idx((3, 784), pixels), idx((0, 28, 28), b""), gzip.compress(whole[0])):  # fmt: skip
        with pytest.raises(train.Error, match=f"{FILES[2]} and {FILES[3]} are damaged .* delete both and run again"):
            load(broken, whole[1])
    for broken in (b"", b"\0", whole[1][:-1], whole[1] + b"\0", idx((2,), digits), idx((3,), digits, 13), idx((3,), bytes([9, 0, 10])), idx((0,), b""),
                   idx((3, 1), digits), gzip.compress(whole[1])):  # fmt: skip
        with pytest.raises(train.Error, match="are damaged"):
            load(whole[0], broken)
    with pytest.raises(train.Error, match="are damaged"):
        load(idx((0, 28, 28), b""), idx((0,), b""))


def test_sample_is_made_again_byte_for_byte(tmp_path):
    result = uv_run("data/make_sample.py", "made", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    readme = (REPO / "data/README.md").read_text()
    for name in FILES:
        data = (SAMPLE / "MNIST/raw" / name).read_bytes()
        assert (tmp_path / "made/MNIST/raw" / name).read_bytes() == data
        assert f"{hashlib.sha256(data).hexdigest()}  {name}" in readme


@pytest.fixture
def mirror(server):
    """The sample, gzipped, on a server; `md5` are its sums."""
    md5 = {}
    for name in FILES:
        data = gzip.compress((SAMPLE / "MNIST/raw" / name).read_bytes(), 1)
        server.answers[f"/{name}.gz"] = data
        md5[f"{name}.gz"] = hashlib.md5(data).hexdigest()
    server.md5 = md5
    return server


@pytest.fixture
def torchvision_mirrors(monkeypatch):
    """Set torchvision's mirrors and sums for a call in this process."""
    from torchvision.datasets import MNIST

    def set_to(mirrors, md5):
        monkeypatch.setattr(MNIST, "mirrors", mirrors)
        monkeypatch.setattr(MNIST, "resources", list(md5.items()))

    return set_to


def files_below(folder) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_download_then_no_network(mirror, trained, tmp_path):
    """predict fetches the two test files only, train the rest, and a later run needs no network."""
    options = {"md5": mirror.md5, "cwd": tmp_path}
    result = run_with_mirrors("predict.py", "--weights", trained.weights, mirrors=[*DEAD, mirror.url], **options)
    assert last_line(result.stdout) == last_line(trained.stdout), result.stderr
    assert files_below(tmp_path) == set(FILES[2:]) and mirror.requests == [f"/{name}.gz" for name in FILES[2:]]
    result = run_with_mirrors("train.py", "--epochs", 0.1, mirrors=[mirror.url], **options)
    assert result.returncode == 0 and files_below(tmp_path) == {*FILES, "mnist_cnn.pt"}, result.stderr
    assert mirror.requests[2:] == [f"/{name}.gz" for name in FILES[:2]]
    result = run_with_mirrors("predict.py", mirrors=DEAD, **options)
    assert result.returncode == 0 and (tmp_path / "data/mnist/MNIST/raw" / FILES[0]).read_bytes() == (SAMPLE / "MNIST/raw" / FILES[0]).read_bytes()


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 5000)


def silent(handler):
    time.sleep(3)


def html(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>Log in to the Wi-Fi</html>")


def failing(handler):
    handler.send_error(500)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(bytes(1 << 20))


@pytest.mark.parametrize("fault", [cut_off, silent, html, failing, endless], ids=lambda f: f.__name__)
def test_bad_mirror_gives_way_to_the_next_or_an_error(fault, mirror, train, torchvision_mirrors, monkeypatch, tmp_path):
    bad = f"/bad/{FILES[3]}.gz"  # the second file: the first has come whole by then
    mirror.answers[f"/bad/{FILES[2]}.gz"] = mirror.answers[f"/{FILES[2]}.gz"]
    mirror.answers[bad] = fault
    urlopen = train.urllib.request.urlopen
    shorter = lambda url, timeout: urlopen(url, timeout=timeout / 20 if url.endswith(bad) else timeout)  # noqa: E731
    monkeypatch.setattr(train.urllib.request, "urlopen", shorter)
    torchvision_mirrors([mirror.url + "bad/"], mirror.md5)
    with pytest.raises(train.Error, match=FILES[3]):
        train.choose_data(tmp_path, ["test"])
    assert not files_below(tmp_path)
    torchvision_mirrors([mirror.url + "bad/", mirror.url], mirror.md5)
    train.choose_data(tmp_path, ["test"])
    assert files_below(tmp_path) == set(FILES[2:]) and mirror.requests.count(bad) == 2


def test_an_endless_answer_fills_no_memory(mirror, train):
    mirror.answers["/endless"] = endless
    assert len(train.fetch([mirror.url + "endless"], None)) == 1 << 26


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_no_network_falls_back_to_the_sample(script, trained, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(SAMPLE)
    options = ["--epochs", 0.1] if script == "train.py" else ["--weights", trained.weights]
    result = run_with_mirrors(script, *options, mirrors=DEAD, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "test images of the sample: " in last_line(result.stdout)
    assert sum("using the sample in data/sample" in line for line in result.stderr.splitlines()) == 1
    result = run_with_mirrors(script, *options, "--json", mirrors=DEAD, cwd=tmp_path)
    assert json.loads(result.stdout)["dataset"] == "sample"


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_no_network_and_no_sample_is_an_error(script, trained, tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(trained.weights.read_bytes())
    result = run_with_mirrors(script, "--weights", weights, mirrors=DEAD, cwd=tmp_path)
    assert_one_error_line(result, "no MNIST in data/mnist", "127.0.0.1:9")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(SAMPLE)  # not for those who name a folder
    result = run_with_mirrors(script, "--weights", weights, "--data-dir", "elsewhere", mirrors=DEAD, cwd=tmp_path)
    assert_one_error_line(result, "no MNIST in elsewhere")
    assert not (tmp_path / "elsewhere").exists() and weights.read_bytes() == trained.weights.read_bytes()


# The scripts themselves


def metadata(path) -> dict:
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", path.read_text())[1]
    return tomllib.loads("".join(line[2:] or "\n" if len(line) > 2 else "\n" for line in block.splitlines(keepends=True)))


def test_metadata():
    pins = {}
    for path in sorted([*REPO.glob("*.py"), *REPO.glob("tests/*.py"), REPO / "data/make_sample.py"]):
        if path.name.startswith(("test_", "conftest")):
            continue
        assert path.read_text().startswith("#!/usr/bin/env -S uv run --script\n# /// script\n"), path
        assert path.stat().st_mode & 0o111, path
        data = metadata(path)
        assert data["requires-python"] == ">=3.11" and data["tool"]["uv"]["exclude-newer"] == "2026-11-16T00:00:00Z"
        for requirement in data["dependencies"]:
            name, _, pin = requirement.partition("==")
            assert pin and pins.setdefault(name, pin) == pin, f"{path}: {requirement}"
    assert "__file__" not in (REPO / "train.py").read_text() + (REPO / "predict.py").read_text()


def test_works_as_a_command(trained):
    result = run(REPO / "predict.py", "--data-dir", SAMPLE, cwd=trained.folder)
    assert last_line(result.stdout) == last_line(trained.stdout), result.stderr


def test_git_ignores_what_the_scripts_write():
    outputs = ["data/mnist_cnn.pt", "data/mnist", "requirements.txt", "train.py.lock"]
    result = run("git", "check-ignore", *outputs, cwd=REPO)
    assert result.stdout.split() == outputs


# MNIST itself


@real_mnist
def test_real_mnist(tmp_path):
    trained = uv_run("train.py", "--data-dir", MNIST, cwd=tmp_path, timeout=600)
    match = re.fullmatch(r"Accuracy of SimpleCNN on the 10,000 test images: (\d\d\.\d\d) %", last_line(trained.stdout))
    assert match and float(match[1]) >= 99.0, trained.stderr
    predicted = uv_run("predict.py", "--data-dir", MNIST, cwd=tmp_path)
    assert last_line(predicted.stdout) == last_line(trained.stdout)
    assert f"{100 * their_accuracy(tmp_path / 'data/mnist_cnn.pt', MNIST):.2f} %" in last_line(trained.stdout)
    sample = json.loads(uv_run("predict.py", "--data-dir", SAMPLE, "--json", cwd=tmp_path).stdout)
    assert sample["dataset"] == "sample" and sample["accuracy"] > 0.99
