"""The network, the recipe, and train.py and predict.py as users run them."""

import json
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    FILES,
    MNIST,
    OFFLINE,
    REPO,
    SAMPLE,
    driver,
    files_below,
    idx,
    real_mnist,
    run,
    uv_run,
)
from PIL import Image, ImageDraw
from torch import nn


class TheirCNN(nn.Module):
    """The network as somebody else would write it: pixels to logits."""

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
WROTE = "wrote data/mnist_cnn.pt\n"
ACCURACY = r"Accuracy of SimpleCNN on the {} test images{}: (\d+\.\d\d) %\n"


def their_accuracy(weights, data_dir) -> float:
    """The accuracy by a network and a reader that share nothing with the scripts."""
    images, labels = (
        (data_dir / "MNIST/raw" / name).read_bytes() for name in FILES[2:]
    )
    images = torch.tensor(list(images[16:]), dtype=torch.float32).view(-1, 28, 28)
    model = TheirCNN()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    with torch.no_grad():
        answers = torch.cat([model(x).argmax(1) for x in images.split(1000)])
    return (answers == torch.tensor(list(labels[8:]))).double().mean().item()


# %% The network and the recipe
def test_network_and_normalization(train):
    images = torch.randint(256, (150, 28, 28), dtype=torch.uint8)
    model, theirs = train.SimpleCNN(), TheirCNN()
    theirs.load_state_dict(model.state_dict())
    logits = train.classify(model.train(), images)
    torch.testing.assert_close(logits, theirs(images).detach())
    assert sum(p.numel() for p in model.parameters()) == 225_034


@pytest.mark.parametrize("shape, longer", [((64, 32, 3, 3), 1), ((32, 1, 3, 3), 1.886)])
def test_muon(shape, longer, train):
    """Its steps are those of torch's own Muon, which takes matrices alone.

    Of a tall matrix, as conv1's, torch's are longer by the root of height / width.
    """
    torch.manual_seed(0)
    layer = nn.Module()
    layer.kernels = nn.Parameter(torch.ones(shape))
    layer.bias = nn.Parameter(torch.ones(100))
    matrix = nn.Parameter(torch.ones(shape).flatten(1))
    ours = train.Muon(layer, torch.float32)
    decay = train.WEIGHT_DECAY * longer
    theirs = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=decay, momentum=0.9, ns_steps=3
    )
    for _ in range(5):
        layer.kernels.grad = torch.randn_like(layer.kernels)
        layer.bias.grad = torch.ones(100)
        matrix.grad = layer.kernels.grad.flatten(1)
        ours.step(0.01 * longer)
        theirs.step()
    # They round to bf16; without momentum the difference is 6e-4.
    assert (layer.kernels.flatten(1) - matrix).abs().mean() < 1e-4
    # A vector's update has the length 1: a tenth in each of 100 numbers.
    expected = 1.0
    for _ in range(5):
        expected = expected * (1 - 0.01 * decay) - 0.01 * longer / 10
    torch.testing.assert_close(layer.bias.detach(), torch.full((100,), expected))


def test_distort(train):
    """By 0 nothing moves; by 1 each image moves differently, up to the limits."""
    places = (torch.arange(28.0) - 13.5).expand(28, 28)
    x = torch.stack([places, places.T]).unsqueeze(1)  # a pixel's value is its place
    torch.testing.assert_close(train.distort(x, 0), x)
    torch.manual_seed(0)
    moved = train.distort(x.repeat(500, 1, 1, 1), 1).view(500, 2, 28, 28)
    middle = moved[:, :, 13:15, 13:15]  # nothing of it comes from beyond the edge
    along = middle.diff(dim=3).mean((2, 3))
    down = middle.diff(dim=2).mean((2, 3))
    slopes = torch.stack([along, down], 2) - torch.eye(2)
    widest = train.SCALE + train.WIDEN
    limits = torch.tensor([[widest, train.SLANT], [train.TILT, train.SCALE]])
    largest = slopes.abs().amax(0)
    assert (0.95 * limits < largest).all() and (largest < limits + 1e-4).all()
    mean = torch.tensor([[-train.WIDEN / 2, 0], [0, 0]])  # wider, never narrower
    assert ((slopes.mean(0) - mean).abs() < 0.15 * limits).all()
    shifts = middle.mean((2, 3))
    assert 0.95 * train.SHIFT < shifts.abs().max() < train.SHIFT + 1e-4
    assert len(shifts.unique(dim=0)) == 500


SETTINGS = """import gc, os, signal, socket, sys, warnings, torch, torch.distributed
def settings():
    python = gc.isenabled(), gc.get_threshold(), list(warnings.filters), sys.excepthook
    process = dict(os.environ), socket.getdefaulttimeout(), signal.getsignal(2)
    return python, process, torch.get_num_threads(), torch.initial_seed()
"""


@pytest.mark.parametrize("script", ["train", "predict"])
def test_importing_changes_nothing(script, tmp_path):
    """No setting that a notebook would notice; no import that costs a second."""
    code = f"""{SETTINGS}
before = settings()
sys.path.insert(0, {str(REPO)!r})
import {script}
assert settings() == before, (settings(), before)
{script}.classify({script}.SimpleCNN(), torch.zeros(1, 28, 28, dtype=torch.uint8))
assert not {{"torchvision", "torch._dynamo", "matplotlib"}} & sys.modules.keys()"""
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert not files_below(tmp_path)


# %% As users run them
def test_default_run_on_the_sample(trained):
    """The network, its accuracy and its weights; a note says which data; progress."""
    line = WROTE + ACCURACY.format("1,000", " of data/sample")
    match = re.fullmatch(re.escape(PRINTED) + line, trained.stdout)
    assert match and float(match[1]) >= 98.6
    assert match[1] == f"{100 * their_accuracy(trained.weights, SAMPLE):.2f}"
    [note] = re.findall("^note: .*$", trained.stderr, re.M)
    assert "data/sample" in note and "cannot download MNIST into data/mnist (" in note
    *_, bar = re.split("[\r\n]+", trained.stderr.strip())
    assert re.search(r" 312/312 .*\baccuracy=[01].*\bloss=\d\.\d", bar), bar
    for tensor in torch.load(trained.weights, weights_only=True).values():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert not tensor.requires_grad and tensor.device.type == "cpu"


def test_predict_agrees(trained):
    """Without a network it reports the sample's accuracy too, --json with more."""
    text = uv_run("predict.py", cwd=trained.folder, env=OFFLINE).stdout
    words = "1,000 digits of data/sample, which are among MNIST's training images: "
    assert words in text and text.split()[-2:] == trained.stdout.split()[-2:]
    options = ["--data-dir", "data/sample", "--json"]
    answer = json.loads(uv_run("predict.py", *options, cwd=trained.folder).stdout)
    assert f"{100 * answer['accuracy']:.2f} %" in text
    assert answer["among_mnist_training_images"]
    assert answer["accuracy"] == answer["correct"] / answer["total"]
    assert answer["weights"] == "data/mnist_cnn.pt"
    assert answer["data_dir"] == "data/sample" and answer["total"] == 1000
    rows = answer["confusion"]  # of the true digits
    assert [sum(row) for row in rows] == [100] * 10
    assert sum(rows[n][n] for n in range(10)) == answer["correct"]


def test_calibration_and_confusion(predict):
    """On answers that are known: 4 of 5 right, at a confidence of 0.9."""
    model = predict.SimpleCNN()
    probabilities = torch.full((10,), 0.1 / 9)
    probabilities[7] = 0.9
    logits = probabilities.log()
    with torch.no_grad():
        model.fc2.weight.zero_()
        model.fc2.bias.copy_(logits)
    labels = torch.tensor([7, 7, 7, 7, 1], dtype=torch.uint8)
    digits = predict.Digits(torch.zeros(5, 28, 28, dtype=torch.uint8), labels)
    answer = predict.evaluate(model, digits)
    assert answer["correct"] == 4 and answer["accuracy"] == 0.8
    assert answer["calibration_error"] == pytest.approx(0.1, abs=1e-5)
    assert answer["confusion"][7][7] == 4 and answer["confusion"][1][7] == 1
    cross_entropy = -(4 * logits[7] + logits[1]) / 5
    assert answer["loss"] == pytest.approx(cross_entropy.item(), abs=1e-5)


def test_same_seed_same_bytes(tmp_path):
    """Nothing is written but what is named, and each file is named."""
    options = "--epochs 0.5 --batch-size 100 --lr 0.02 --device cpu --plots plots/of"
    command = ["uv", "run", "--with", "matplotlib==3.11.2", REPO / "train.py"]
    (tmp_path / "link.pt").symlink_to("c.pt")  # stays a link
    runs = {"a.pt": 3, "deep/er/b.pt": 3, "link.pt": 4}
    for name, seed in runs.items():
        own = ["--data-dir", SAMPLE, "--weights", name, "--seed", seed]
        result = run(*command, *options.split(), *own, cwd=tmp_path)
        assert f"wrote {name}\nwrote plots/of/training.png\n" in result.stdout
        assert "20/20" in result.stderr
    a, b, c = ((tmp_path / name).read_bytes() for name in runs)
    assert a == b != c and (tmp_path / "link.pt").is_symlink()
    written = {"a.pt", "b.pt", "c.pt", "link.pt", "training.png"}
    assert files_below(tmp_path) == written
    with Image.open(tmp_path / "plots/of/training.png") as plot:
        assert plot.format == "PNG" and min(plot.size) >= 300


NO_BF16 = "import torch; torch.cpu.get_capabilities = lambda: {}"


def test_without_bf16(tmp_path):
    """As on most laptops, whose processors have AVX2 alone."""
    options = ["--data-dir", SAMPLE, "--epochs", 8]
    command = [sys.executable, driver(tmp_path, NO_BF16), *options]
    result = run(*command, cwd=tmp_path)
    match = re.search(ACCURACY.format("1,000", ".*"), result.stdout)
    assert match and float(match[1]) >= 97, result.stderr


def test_fewer_images_than_a_batch(tmp_path):
    """The batch fits itself to them."""
    write_crosses(tmp_path / "own", "train", 9)
    write_crosses(tmp_path / "own", "t10k", 2)
    result = uv_run("train.py", "--data-dir", "own", "--epochs", 20, cwd=tmp_path)
    assert "2 test images of own: 100.00 %" in result.stdout, result.stderr


def write_crosses(folder, split: str, number: int) -> None:
    """Own digits that MNIST does not know: a cross in a frame is a 3."""
    images = b""
    for size in range(number):
        picture = Image.new("L", (28, 28))
        low, high = 3 + size % 4, 24 - size % 3
        draw = ImageDraw.Draw(picture)
        draw.rectangle((low, low, high, high), outline=255, width=2)
        draw.line((low, low, high, high), fill=255, width=2)
        draw.line((low, high, high, low), fill=255, width=2)
        images += picture.tobytes()
    folder.mkdir(exist_ok=True)
    shape = (number, 28, 28)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(shape, images))
    labels = idx((number,), bytes([3] * number))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)


def test_also_own_digits(trained, tmp_path):
    """They are learnt, and MNIST is not forgotten."""
    write_crosses(tmp_path / "own", "t10k", 12)
    write_crosses(tmp_path / "own", "train", 5)
    options = ["--data-dir", SAMPLE, "--also", "own", "--epochs", 8]
    result = uv_run("train.py", *options, cwd=tmp_path)
    line = ACCURACY.format("1,000", f" of {SAMPLE}")
    match = re.fullmatch(re.escape(PRINTED) + WROTE + line, result.stdout)
    assert match and float(match[1]) >= 97.8, result.stdout
    accuracy = {}
    for weights in (trained.weights, "data/mnist_cnn.pt"):
        options = ["--data-dir", "own", "--weights", weights]
        result = uv_run("predict.py", *options, cwd=tmp_path)
        match = re.search(ACCURACY.format(12, " of own"), result.stdout)
        accuracy[weights] = float(match[1])
    before, after = accuracy.values()
    assert before < 60 and after == 100


@pytest.mark.parametrize("number, copies", [(1, 320), (100, 3), (900, 1)])
def test_share_of_own_digits(number, copies, train, tmp_path):
    """Few are repeated until they are 8 % of 4,000; many are taken once."""
    write_crosses(tmp_path, "train", number)
    own = train.load(tmp_path, "train")
    images, labels = train.add_own(train.load(SAMPLE, "train"), own)
    assert len(labels) == len(images) == 4000 + copies * number
    assert labels.bincount()[3] == 400 + copies * number


@pytest.mark.parametrize("script", ["train", "predict"])
def test_help(script, request, capsys):
    """What the script does, then each option with its default."""
    with pytest.raises(SystemExit, match="0"):
        request.getfixturevalue(script).main(["--help"])
    text = capsys.readouterr().out
    for option in re.findall(r"--[a-z-]+", text.split("\n\n")[0]):
        assert re.search(rf"(?m)^  {option}[ ,].*\n?.*[a-z]", text), option
    assert "None" not in text and "data/mnist_cnn.pt)" in text


@real_mnist
def test_real_mnist(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist").symlink_to(MNIST)
    result = uv_run("train.py", cwd=tmp_path)
    line = WROTE + ACCURACY.format("10,000", "")
    match = re.fullmatch(re.escape(PRINTED) + line, result.stdout)
    assert match and float(match[1]) >= 99.3, result.stderr
    theirs = their_accuracy(tmp_path / "data/mnist_cnn.pt", MNIST)
    assert match[1] == f"{100 * theirs:.2f}"
    answer = json.loads(uv_run("predict.py", "--json", cwd=tmp_path).stdout)
    assert match[1] == f"{100 * answer['accuracy']:.2f}"
    assert answer["data_dir"] == "data/mnist"
    assert not answer["among_mnist_training_images"]
    # Without LOGIT_SCALE they are 0.079 and 0.097.
    assert answer["calibration_error"] < 0.006 and answer["loss"] < 0.025
