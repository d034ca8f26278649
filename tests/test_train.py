"""The network, the recipe, and train.py and predict.py as users run them."""

import json
import math
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
    import_script,
    run,
    uv_run,
)
from PIL import Image
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


def test_muon(train):
    """Its steps are those of torch's own Muon, which takes matrices alone."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    matrix = nn.Parameter(layer.weight.detach().flatten(1))
    bias = layer.bias.detach().clone()
    ours, decay = train.Muon(layer, torch.float32), train.WEIGHT_DECAY
    theirs = torch.optim.Muon([matrix], 0.01, decay, momentum=0.9, ns_steps=3)
    for _ in range(5):
        layer.weight.grad = torch.randn_like(layer.weight)
        layer.bias.grad = torch.ones(64)
        matrix.grad = layer.weight.grad.flatten(1)
        ours.step(0.01)
        theirs.step()
        # A vector's update has the length 1: an eighth in each of 64 numbers.
        bias = bias * (1 - 0.01 * decay) - 0.01 / 8
    # They round to bf16; without momentum the difference is 6e-4.
    assert (layer.weight.flatten(1) - matrix).abs().mean() < 1e-4
    torch.testing.assert_close(layer.bias.detach(), bias)


def test_distort(train):
    """By 0 nothing moves; by 1 each image moves differently, up to the limits."""
    places = (torch.arange(28.0) - 13.5).expand(28, 28)
    x = torch.stack([places, places.T]).unsqueeze(1)  # a pixel's value is its place
    torch.testing.assert_close(train.distort(x, 0), x)
    torch.manual_seed(0)
    moved = train.distort(x.repeat(500, 1, 1, 1), 1).view(500, 2, 28, 28)
    middle = moved[:, :, 13:15, 13:15]  # nothing of it comes from beyond the edge
    along, down = (middle.diff(dim=side).mean((2, 3)) for side in (3, 2))
    slopes = torch.stack([along, down], 2) - torch.eye(2)
    widest = train.SCALE + train.WIDEN
    limits = torch.tensor([[widest, train.SLANT], [train.TILT, train.SCALE]])
    largest = slopes.abs().amax(0)
    assert (0.95 * limits < largest).all() and (largest < limits + 1e-4).all()
    mean = torch.tensor([[-train.WIDEN / 2, 0], [0, 0]])  # wider, never narrower
    assert ((slopes.mean(0) - mean).abs() < 0.15 * limits).all()
    shifts = middle.mean((2, 3))
    assert 0.95 * train.SHIFT < shifts.abs().max() < train.SHIFT + 1e-4


def stems(width: int = 3) -> torch.Tensor:
    """(1000, 28, 28) uint8: an upright line from column 12 on."""
    images = torch.zeros(1000, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 12 : 12 + width] = 255
    return images


def test_some_1s_and_7s_get_a_stroke(train):
    """And lie where MNIST's do: else their place would give a stroke away."""
    torch.manual_seed(0)
    axis = torch.arange(28.0)
    for label in (1, 4, 7):
        digits = train.Digits(stems(), torch.full((1000,), label))
        images, labels = train.add_strokes(digits)
        assert digits.images.equal(stems()), "the caller's images are not drawn on"
        assert images.dtype == torch.uint8 and labels.equal(digits.labels)
        changed = (images != stems()).flatten(1).any(1)
        expected = 0 if label == 4 else train.STROKES
        assert abs(changed.float().mean() - expected) < 0.06
        ink = images[changed].float()
        for side in (1, 2):
            centre = ink.sum(3 - side) @ axis / ink.sum((1, 2))
            assert ((centre - 14).abs() < 0.6).all()


def added(train, stroke: tuple, width: int) -> torch.Tensor:
    """(1000, 28, 28) 0 or 1, the ink that stems of this width get."""
    torch.manual_seed(0)
    ink = train.draw(stroke, stems(width)) > 127
    for image in ink:  # each was moved to its centre of mass: bring the stem back
        column = int((image.sum(0) > 16).int().argmax())
        row = int(image[:, column].int().argmax())
        image.copy_(image.roll((4 - row, 12 - column), (0, 1)))
    return (ink & (stems(width) == 0)).float()


def test_upstroke(train):
    """It begins in the upper half of the stem and goes left and down."""
    ink = added(train, train.UPSTROKE, 3)
    left, right = ink[:, :, :12], ink[:, :, 15:]
    assert left.flatten(1).any(1).float().mean() > 0.95
    assert right.sum() < 0.1 * left.sum()
    rows = torch.arange(28.0)
    near, far = left[:, :, 9:].sum((0, 2)), left[:, :, :7].sum((0, 2))
    assert near @ rows / near.sum() + 1 < far @ rows / far.sum() < 20


@pytest.mark.parametrize("width", [2, 4])
def test_bar(width, train):
    """Across the stem, at half its height, as wide as the stem."""
    ink = added(train, train.BAR, width)
    sides = ink[:, :, :12], ink[:, :, 12 + width :]
    assert all(side.flatten(1).any(1).float().mean() > 0.9 for side in sides)
    rows = ink.nonzero()[:, 1].float()
    assert 12 < rows.mean() < 16 and rows.std() < 3
    # In the column beside the stem.
    assert abs(ink[:, :, 11].sum(1).mean() - width) < 0.8


@pytest.mark.parametrize("n", [1, 256])
def test_what_is_no_digit(n, train):
    x, labels = torch.rand(n, 1, 28, 28), (torch.arange(n) + 8) % 10
    images, targets = train.add_non_digits(x, labels)
    third = round(train.NON_DIGITS * n / 3)  # 5 of 256
    for i, image in enumerate(x):
        made = [image.maximum(image.rot90(1, (1, 2))), image.maximum(image.flip(2))]
        made += [image.flip(2), image]
        kind = min(i // third, 3) if third else 3
        assert images[i].equal(made[kind])
        # Mirrored, these are digits still.
        expected = kind == 3 or (kind == 2 and labels[i] in (0, 1, 8))
        ten = torch.eye(10)[labels[i]] if expected else torch.full((10,), 0.1)
        assert targets[i].equal(ten)


SETTINGS = """import gc, os, signal, socket, sys, warnings, torch, torch.distributed
import cv2, PIL.JpegImagePlugin
def settings():
    python = gc.isenabled(), gc.get_threshold(), list(warnings.filters), sys.excepthook
    process = dict(os.environ), socket.getdefaulttimeout(), signal.getsignal(2)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    return python, process, threads, torch.initial_seed(), dict(PIL.Image.EXTENSION)
"""


@pytest.mark.parametrize("name", ["train", "predict", "read", "draw"])
def test_importing_changes_nothing(name, tmp_path):
    """No setting that a notebook would notice; no import that costs a second."""
    code = f"""{SETTINGS}
before = settings()
sys.path.insert(0, {str(REPO)!r})
import {name}
assert settings() == before, (settings(), before)
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
    assert answer["weights"] == "data/mnist_cnn.pt"
    assert answer["data_dir"] == "data/sample" and answer["total"] == 1000
    assert [sum(row) for row in answer["confusion"]] == [100] * 10


def test_evaluate(predict):
    """On answers that are known: 4 of 5 right, at a confidence of 0.9."""
    model = predict.SimpleCNN()
    logits = torch.full((10,), 0.1 / 9).log()
    logits[7] = math.log(0.9)
    with torch.no_grad():
        model.fc2.weight.zero_()
        model.fc2.bias.copy_(logits)
    labels = torch.tensor([7, 7, 7, 7, 1], dtype=torch.uint8)
    digits = predict.Digits(torch.zeros(5, 28, 28, dtype=torch.uint8), labels)
    answer = predict.evaluate(model, digits)
    assert (answer["correct"], answer["total"], answer["accuracy"]) == (4, 5, 0.8)
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


def write_squares(folder, split: str, number: int) -> None:
    """Own digits that MNIST does not know: a square is a 3."""
    images = torch.zeros(number, 28, 28, dtype=torch.uint8)
    for i, image in enumerate(images):
        image[3 + i % 4 : 25, 4 : 24 - i % 3] = 255
    folder.mkdir(exist_ok=True)
    files = {"images-idx3": images, "labels-idx1": torch.full((number,), 3).byte()}
    for name, values in files.items():
        data = idx(values.shape, bytes(values.flatten()))
        (folder / f"{split}-{name}-ubyte").write_bytes(data)


def test_fewer_images_than_a_batch(tmp_path):
    """The batch fits itself to them."""
    write_squares(tmp_path / "own", "train", 9)
    write_squares(tmp_path / "own", "t10k", 2)
    result = uv_run("train.py", "--data-dir", "own", "--epochs", 20, cwd=tmp_path)
    assert "2 test images of own: 100.00 %" in result.stdout, result.stderr


def test_also_own_digits(trained, tmp_path):
    """They are learnt, and MNIST is not forgotten."""
    write_squares(tmp_path / "own", "t10k", 12)
    write_squares(tmp_path / "own", "train", 5)
    options = ["--data-dir", SAMPLE, "--also", "own", "--epochs", 8]
    result = uv_run("train.py", *options, cwd=tmp_path)
    match = re.search(ACCURACY.format("1,000", f" of {SAMPLE}"), result.stdout)
    assert match and float(match[1]) >= 97.8, result.stdout
    accuracy = []
    for weights in (trained.weights, "data/mnist_cnn.pt"):
        options = ["--data-dir", "own", "--weights", weights]
        result = uv_run("predict.py", *options, cwd=tmp_path)
        match = re.search(ACCURACY.format(12, " of own"), result.stdout)
        accuracy.append(float(match[1]))
    assert accuracy[0] < 60 and accuracy[1] == 100


@pytest.mark.parametrize("number, copies", [(1, 320), (100, 3), (900, 1)])
def test_share_of_own_digits(number, copies, train):
    """Few are repeated until they are 8 % of 4,000; many are taken once."""
    images = torch.zeros(number, 28, 28, dtype=torch.uint8)
    own = train.Digits(images, torch.full((number,), 3, dtype=torch.uint8))
    images, labels = train.add_own(train.load(SAMPLE, "train"), own)
    assert len(labels) == len(images) == 4000 + copies * number
    assert labels.bincount()[3] == 400 + copies * number


@pytest.mark.parametrize("name", ["train", "predict", "read", "draw"])
def test_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        import_script(name).main(["--help"])
    text = capsys.readouterr().out
    assert "--weights" in text and "None" not in text


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"not here: {MNIST}")
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
