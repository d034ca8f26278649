"""Training: the network and its file, the recipe's parts, and train.py as a user runs it."""

import ast
import hashlib
import json
import re
import sys
import tomllib

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import FILES, MNIST, REPO, SAMPLE, files_below, real_mnist, run, uv_run

SCRIPTS = [path for name in ("train", "predict", "draw") if (path := REPO / f"{name}.py").exists()]


class TheirCNN(nn.Module):
    """The network as somebody else would write it, for the exchange of weights: pixels to logits."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(1600, 128), nn.Linear(128, 10)

    def forward(self, images):
        x = (images.unsqueeze(1) / 255 - 0.1307) / 0.3081
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


PRINTED = f"{TheirCNN()}\n".replace("TheirCNN", "SimpleCNN")


def their_accuracy(weights, data_dir) -> float:
    """The accuracy by a network and a reader that share nothing with the scripts."""
    raw = data_dir / "MNIST/raw"
    images = torch.tensor(list((raw / FILES[2]).read_bytes()[16:]), dtype=torch.float32).view(-1, 28, 28)
    labels = torch.tensor(list((raw / FILES[3]).read_bytes()[8:]))
    model = TheirCNN()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    with torch.no_grad():
        digits = torch.cat([model(x).argmax(1) for x in images.split(1000)])
    return (digits == labels).double().mean().item()


# The network and its file


def test_network_and_normalization(train):
    images = torch.randint(256, (150, 28, 28), dtype=torch.uint8)
    model, theirs = train.SimpleCNN(), TheirCNN()
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(train.classify(model, images), theirs(images).detach())


def test_copies_in_the_scripts_are_equal():
    """What stands in several scripts under one name is the same text."""
    seen, shared = {}, set()
    for path in SCRIPTS:
        source = path.read_text()
        for node in ast.parse(source).body:
            if (name := getattr(node, "name", "main")) != "main":
                text = ast.get_source_segment(source, node)
                assert seen.setdefault(name, text) == text, f"{name} in {path.name} is another"
                shared |= {name} if seen[name] is not text else set()
    assert {"Error", "SimpleCNN", "normalize", "classify", "find_data", "load"} <= shared


def test_metadata():
    """Every script is a program with exact pins, the same everywhere."""
    pins = {}
    for path in [*REPO.glob("*.py"), *REPO.glob("tests/*.py"), REPO / "data/make_sample.py"]:
        if path.name.startswith(("test_", "conftest")):
            continue
        head, block, _ = path.read_text().split("# ///", 2)
        assert head == "#!/usr/bin/env -S uv run --script\n" and path.stat().st_mode & 0o111, path
        data = tomllib.loads("\n".join(line[2:] for line in block.splitlines()[1:]))
        assert data["requires-python"] == ">=3.11"
        assert not data["dependencies"] or data["tool"]["uv"]["exclude-newer"] == "2026-11-16T00:00:00Z"
        for requirement in data["dependencies"]:
            name, _, pin = requirement.partition("==")
            assert pin and pins.setdefault(name, pin) == pin, f"{path}: {requirement}"


def test_importing_runs_nothing(tmp_path):
    """Nor does it import what costs a second and a training does not need: torchvision, torch._dynamo."""
    code = f"""import sys, torch; sys.path.insert(0, {str(REPO)!r}); import train, predict
train.train(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.zeros(8), batch_size=4, epochs=1)
assert not {{"torchvision", "torch._dynamo", "matplotlib"}} & sys.modules.keys()"""
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "") and not list(tmp_path.iterdir()), result.stderr


# The recipe


def test_muon(train):
    """Steps are those of torch's own Muon, which takes matrices alone; small parameters move half as far."""
    torch.manual_seed(0)
    shapes = (64, 32, 3, 3), (10, 128), 100, 5
    large, small, bias, frozen = parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    theirs = [nn.Parameter(torch.ones(64, 288)), nn.Parameter(torch.ones(10, 128))]
    groups = [dict(params=[p], lr=lr, weight_decay=0.001 / lr) for p, lr in zip(theirs, (0.01, 0.005))]
    reference = torch.optim.Muon(groups, momentum=0.9, ns_steps=3)
    momenta = [torch.zeros_like(p) for p in parameters]
    for _ in range(5):
        large.grad, small.grad, bias.grad = torch.randn_like(large), torch.randn_like(small), torch.ones(100)
        theirs[0].grad, theirs[1].grad = large.grad.flatten(1), small.grad
        train.muon(parameters, momenta, 0.01, 0.1, torch.float32)
        reference.step()
    for ours, their in zip((large.flatten(1), small), theirs):
        assert (ours - their).abs().mean() < 2e-5  # they round to bf16; without momentum it is 6e-4
    assert bias.tolist() == pytest.approx([0.999**5 - 5 * 0.005 / 10] * 100, abs=2e-5)
    assert frozen.equal(torch.ones(5))


def test_distort(train):
    """Nothing moves by 0; magnitude and shift move each image differently, and as far as they say."""
    places = (torch.arange(28.0) - 13.5).expand(28, 28)
    x = torch.stack([places, places.T]).unsqueeze(1)  # each pixel's value is its place
    assert torch.allclose(train.distort(x, 0, 0), x, atol=1e-5)
    x = x.repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    inner = (slice(None), 0, slice(8, -8), slice(8, -8))  # nothing of it looks beyond the edge
    shifted = (train.distort(x, 0, 2) - x)[inner].flatten(1)
    assert (shifted.std(1) < 1e-4).all() and 1.9 < shifted.abs().max() < 2.001 and shifted.mean().abs() < 0.15
    assert len({round(float(row[0]), 4) for row in shifted}) > 380
    moved = (train.distort(x, 1, 0) - x)[inner].view(200, 2, 12, 12)  # across and down
    slopes = torch.stack([moved[:, :, 0, 1], moved[:, :, 1, 0]]) - moved[:, :, 0, 0]
    limits, largest = torch.tensor([[0.1, 0.2], [0.3, 0.1]]), slopes.abs().amax(1)
    assert (0.9 * limits < largest).all() and (largest < limits + 1e-4).all()
    assert (slopes.mean(1).abs() < 0.2 * limits).all()


def test_train_refuses_what_it_cannot_use(train):
    images, labels = torch.zeros(8, 28, 28, dtype=torch.uint8), torch.zeros(8)
    for wrong in (images.float() / 255, images.view(8, 784)):
        with pytest.raises(AssertionError, match="uint8"):
            train.train(wrong, labels, batch_size=4)
    for batch_size in (-1, 0, 9):
        with pytest.raises(train.Error, match=f"--batch-size {batch_size} must be"):
            train.train(images, labels, batch_size=batch_size)
    with pytest.raises(train.Error, match="the loss is nan at step .*--lr"):
        train.train(images, labels, batch_size=4, epochs=9, lr=1e30)


def test_train_mode_in_the_loop_and_eval_mode_after_it(train):
    images, modes = torch.zeros(8, 28, 28, dtype=torch.uint8), []
    with nn.modules.module.register_module_forward_pre_hook(lambda module, _: modes.append(module.training)):
        model, history = train.train(images, torch.zeros(8), batch_size=4, epochs=1)
        assert all(modes) and len(history) == 2 and not model.training
        modes.clear()
        train.classify(model.train(), images)
    assert modes and not any(modes)


# As a user runs it


def test_prints_the_network_and_the_accuracy_of_the_sample_without_a_network(trained):
    line = r"Accuracy of SimpleCNN on the 1,000 test images of the sample: (\d\d\.\d\d) %\n"
    match = re.fullmatch(re.escape(PRINTED) + line, trained.stdout)
    assert match and float(match[1]) >= 98.0
    assert trained.stderr.count("note: using data/sample; cannot download MNIST") == 1
    assert "Traceback" not in trained.stderr


def test_predict_and_other_programs_agree(trained, tmp_path):
    accuracy = trained.stdout.removeprefix(PRINTED)
    assert uv_run("predict.py", "--data-dir", "data/sample", cwd=trained.folder).stdout == accuracy
    assert accuracy.endswith(f" {100 * their_accuracy(trained.weights, SAMPLE):.2f} %\n")
    for tensor in torch.load(trained.weights, weights_only=True).values():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert not tensor.requires_grad and tensor.device.type == "cpu"
    torch.save(TheirCNN().state_dict(), tmp_path / "theirs.pt")
    result = uv_run("predict.py", "--data-dir", SAMPLE, "--weights", "theirs.pt", "--json", cwd=tmp_path)
    answer = json.loads(result.stdout)
    assert answer["accuracy"] == pytest.approx(their_accuracy(tmp_path / "theirs.pt", SAMPLE))
    rows = answer["confusion"]  # of the true digits, of which the sample has a hundred each
    assert all(sum(row) == 100 for row in rows) and sum(rows[n][n] for n in range(10)) == answer["correct"]


def test_same_seed_same_bytes_json_and_plot(tmp_path):
    """Nothing is written but what is named."""
    command = ["uv", "run", "--with", "matplotlib==3.11.2", REPO / "train.py", "--data-dir", SAMPLE, "--json"]
    options = ["--epochs", 0.5, "--batch-size", 100, "--lr", 0.02, "--device", "cpu", "--plots", "plots/of"]
    answers = {}
    (tmp_path / "link.pt").symlink_to("c.pt")  # stays a link
    for name, seed in (("a.pt", 3), ("deep/er/b.pt", 3), ("link.pt", 4)):
        result = run(*command, *options, "--weights", name, "--seed", seed, cwd=tmp_path)
        answers[name] = json.loads(result.stdout)
        assert "20/20" in result.stderr
    a, b, c = ((tmp_path / name).read_bytes() for name in answers)
    assert a == b != c and (tmp_path / "link.pt").is_symlink()
    expected = dict(seed=4, epochs=0.5, total=1000, device="cpu", weights="link.pt", torch=torch.__version__)
    assert (expected | {"dataset": str(SAMPLE)}).items() <= answers["link.pt"].items()
    assert answers["a.pt"]["accuracy"] == answers["a.pt"]["correct"] / 1000
    assert 0 < answers["a.pt"]["loss"] < 2.5
    assert files_below(tmp_path) == {"a.pt", "b.pt", "c.pt", "link.pt", "training.png"}
    assert (tmp_path / "plots/of/training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_names_each_option_and_its_default(path, tmp_path):
    result = uv_run(path, "--help", cwd=tmp_path)
    options = re.findall(r"\(\"(--[a-z-]+)\"", path.read_text())
    assert options and all(option in result.stdout for option in options), result.stderr
    assert result.stdout.count("(default") >= len(set(options)) - 2


def test_git_ignores_what_the_scripts_write():
    outputs = ["data/mnist_cnn.pt", "data/mnist", "requirements.txt", "pylock.toml", "train.py.lock"]
    assert run("git", "check-ignore", *outputs, cwd=REPO).stdout.split() == outputs


def test_sample_is_made_again_byte_for_byte(tmp_path):
    assert uv_run("data/make_sample.py", "made", cwd=tmp_path).returncode == 0
    readme = (REPO / "data/README.md").read_text()
    for name in FILES:
        data = (SAMPLE / "MNIST/raw" / name).read_bytes()
        assert (tmp_path / "made/MNIST/raw" / name).read_bytes() == data
        assert f"{hashlib.sha256(data).hexdigest()}  {name}" in readme


@real_mnist
def test_real_mnist(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist").symlink_to(MNIST)
    trained = uv_run("train.py", cwd=tmp_path)
    match = re.search(r"of SimpleCNN on the 10,000 test images: (\d\d\.\d\d) %\n\Z", trained.stdout)
    assert match and float(match[1]) >= 99.0, trained.stderr
    assert match[1] == f"{100 * their_accuracy(tmp_path / 'data/mnist_cnn.pt', MNIST):.2f}"
    answer = json.loads(uv_run("predict.py", "--json", cwd=tmp_path).stdout)
    assert match[1] == f"{100 * answer['accuracy']:.2f}" and answer["dataset"] == "mnist"
    assert answer["calibration_error"] < 0.006 and answer["loss"] < 0.025  # unscaled logits: 0.079 and 0.097
