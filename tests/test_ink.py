"""data/make_ink.py: the pages that it draws, and the network that it trains on them."""

import cv2
import numpy as np
import pytest
import torch
from conftest import ENV, assert_one_error_line, import_script, play_mnist, uv_run


@pytest.fixture(scope="module")
def make_ink(tmp_path_factory):
    """The script as a module, with the sample's digits in place of MNIST's."""
    module = import_script("data/make_ink")
    folder = tmp_path_factory.mktemp("ink")
    play_mnist(folder)
    module.RAW = folder / module.RAW
    return module


def test_pages(make_ink):
    """The same number, the same page; its ink differs from the paper beside it."""
    pages, contrasts = make_ink.Pages(96, 0, held_out=False), []
    for i in range(0, 96, 2):
        page, target = pages[i]
        again, same = pages[i]
        assert np.array_equal(page, again) and np.array_equal(target, same)
        assert page.shape == target.shape[1:] and len(page) in make_ink.SIDES
        ink, digits = target
        assert not (digits & ~ink).any()
        near = cv2.dilate(ink.astype(np.uint8), np.ones((9, 9))) > 0
        if ink.any() and (near & ~ink).any():
            difference = page[ink].mean() - page[near & ~ink].mean()
            contrasts.append(abs(difference))
    assert len(contrasts) > 24 and np.median(contrasts) > 20


def test_digits_that_touch_come_apart(make_ink):
    hand = make_ink.Hand(height=40, pen=0.1, slant=0, tilt=0, width=1)
    page = make_ink.Page(160, hand, clean=True)
    stroke = np.ones((40, 8), np.float32)
    page.put(stroke, 40, 60, is_digit=True)
    page.put(stroke, 48, 60, is_digit=True)  # without a gap
    ink = (page.digits > 0.5) & (page.crowd < 2)
    count, _ = cv2.connectedComponents(ink.astype(np.uint8))
    assert count == 1 + 2


def test_training(read, tmp_path):
    """Two steps: the same bytes twice, and a network that read.py takes."""
    play_mnist(tmp_path)
    env = ENV | {"OMP_NUM_THREADS": "1"}
    for name in ("a.pt", "b.pt"):
        options = "--steps", 2, "--output", name
        result = uv_run("data/make_ink.py", *options, cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr
        assert "pages of held-out digits: " in result.stdout
    a, b = ((tmp_path / name).read_bytes() for name in ("a.pt", "b.pt"))
    assert a == b and len(a) < 700_000
    model = read.load_weights(str(tmp_path / "a.pt"), read.InkNet)
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 64, 96)).shape == (1, 2, 64, 96)


def test_no_mnist(tmp_path):
    result = uv_run("data/make_ink.py", cwd=tmp_path)
    assert_one_error_line(result, "data/mnist/MNIST/raw", "`uv run train.py`")


def test_pages_to_look_at(tmp_path):
    play_mnist(tmp_path)
    result = uv_run("data/make_ink.py", "--pages", "pages.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert cv2.imread(str(tmp_path / "pages.png")).shape == (1920, 1600, 3)
