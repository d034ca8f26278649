"""The strokes drawn into MNIST's 1s and 7s, and the images that are no digit."""

import pytest
import torch
import torch.nn.functional as F

SHARES = {1: "UPSTROKE", 7: "BAR"}


def line(rows: slice, columns: slice) -> torch.Tensor:
    """A (28, 28) uint8 image with one bar of ink."""
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[rows, columns] = 255
    return image


def made_digit(label: int) -> torch.Tensor:
    """A digit of straight strokes, 3 pixels wide and 20 high, as MNIST lays it out."""
    stem = line(slice(4, 24), slice(13, 16))
    if label == 7:
        return stem | line(slice(4, 7), slice(6, 16))
    return stem


def many(train, label: int, n: int = 400):
    """`n` copies of a made digit."""
    images = made_digit(label).expand(n, 28, 28).clone()
    return train.Digits(images, torch.full((n,), label, dtype=torch.uint8))


def drawn(train, label: int, seed: int = 0) -> torch.Tensor:
    """Those of many copies that got their stroke."""
    torch.manual_seed(seed)
    digits = many(train, label)
    images = train.add_european_strokes(digits).images
    return images[(images != digits.images).flatten(1).any(1)]


def stem_column(images: torch.Tensor) -> torch.Tensor:
    """Where the stem is now: the middle of its three columns of 17 rows or more."""
    is_full = (images > 127).sum(1) >= 17
    return is_full.float().argmax(1) + 1


def added(images: torch.Tensor, label: int) -> torch.Tensor:
    """(N, 28, 41) ink that the made digit lacks, its stem at column 20."""
    columns = torch.arange(41) + stem_column(images)[:, None] - 20
    inside = (columns >= 0) & (columns < 28)
    rows = images.gather(2, columns.clamp(0, 27)[:, None].expand(-1, 28, -1))
    rows = rows * inside[:, None]
    before = F.pad(made_digit(label), (6, 7))
    tops = (rows > 0).any(2).float().argmax(1)
    return torch.stack(
        [
            (image > 127) & (before.roll(int(top) - 4, 0) < 128)
            for image, top in zip(rows, tops, strict=True)
        ]
    )


def test_ones_get_an_upstroke_to_the_left_of_their_stem(train):
    ink = added(drawn(train, 1), 1)
    assert len(ink) > 80
    assert not ink[:, :, 22:].any(), "nothing to the right of the stem"
    # The stroke falls: its left half lies below its right half.
    rows = torch.arange(28.0)
    for image in ink:
        columns = image.any(0).nonzero().flatten()
        middle = columns.float().mean()
        left = image[:, columns[columns < middle]].sum(1)
        right = image[:, columns[columns >= middle]].sum(1)
        assert (left @ rows.long()) / left.sum() > (right @ rows.long()) / right.sum()
        assert 2 <= len(columns) <= 14


def test_sevens_get_a_bar_across_the_stem(train):
    ink = added(drawn(train, 7), 7)
    assert len(ink) > 80
    for image in ink:
        assert image[:, :18].any() and image[:, 22:].any(), "on both sides"
        rows = image.any(1).nonzero().flatten()
        assert rows.min() >= 9 and rows.max() <= 20, "in the middle of its height"


@pytest.mark.parametrize("label", SHARES)
def test_strokes_keep_mnists_layout(train, label):
    images = drawn(train, label).float()
    axis = torch.arange(28.0)
    mass = images.sum((1, 2))
    for side in (1, 2):
        centre = images.sum(side) @ axis / mass
        assert (centre - 14).abs().max() <= 0.52
        assert (images > 0).any(side).sum(1).max() <= 20


@pytest.mark.parametrize("width", [2, 4])
def test_the_stroke_is_as_wide_as_the_digits_own(train, width):
    stem = line(slice(4, 24), slice(13, 13 + width))
    images = stem.expand(200, 28, 28).clone()
    flat = train.BAR._replace(down=((0.5, 0.5), (0.5, 0.5)))
    torch.manual_seed(0)
    bars = train.draw(flat, images)
    ends = bars.float().gather(
        2, bars.sum(1).ne(0).float().argmax(1).add(2)[:, None, None].expand(-1, 28, 1)
    )
    thickness = ends.squeeze(2).sum(1) / 255
    assert (thickness - width).abs().max() < 0.8


def test_other_digits_keep_their_bytes(train):
    labels = torch.arange(10, dtype=torch.uint8).repeat(50)
    images = made_digit(1).expand(500, 28, 28).clone()
    before = images.clone()
    torch.manual_seed(0)
    digits = train.add_european_strokes(train.Digits(images, labels))
    changed = (digits.images != before).flatten(1).any(1)
    assert set(labels[changed].tolist()) == {1, 7}
    assert torch.equal(digits.labels, labels)
    assert torch.equal(images, before), "the caller's images are not drawn on"
    assert digits.images.dtype == torch.uint8


@pytest.mark.parametrize("label", SHARES)
def test_as_many_as_promised(train, label):
    n = 4000
    share = getattr(train, SHARES[label]).share
    torch.manual_seed(1)
    digits = many(train, label, n)
    images = train.add_european_strokes(digits).images
    changed = (images != digits.images).flatten(1).any(1).float().mean()
    assert abs(changed - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_the_same_seed_gives_the_same_bytes(train):
    for label in SHARES:
        assert torch.equal(drawn(train, label, 5), drawn(train, label, 5))
    assert not torch.equal(drawn(train, 1, 5)[:50], drawn(train, 1, 6)[:50])


def test_none_of_these_digits_is_no_fault(train):
    digits = train.Digits(
        made_digit(1).expand(3, 28, 28).clone(), torch.zeros(3, dtype=torch.uint8)
    )
    assert torch.equal(train.add_european_strokes(digits).images, digits.images)


@pytest.mark.parametrize("n", [1, 9, 50, 256])
def test_what_is_no_digit_has_no_label(train, n):
    torch.manual_seed(0)
    x = train.normalize(torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8))
    labels = torch.arange(n) % 10
    one_hot = F.one_hot(labels, 10).float()
    before = x.clone()
    images, targets = train.add_non_digits(x, labels)
    assert torch.equal(x, before), "the caller's images are not drawn on"
    assert images.shape == x.shape and targets.dtype == torch.float32
    changed = (images != before).flatten(1).any(1)
    third = round(train.NON_DIGITS * n / 3)
    assert changed.sum() == 3 * third
    is_digit = ~changed
    # Their mirror images are digits still, where nothing else is drawn.
    for label in (0, 1, 8):
        is_digit[2 * third :] |= labels[2 * third :] == label
    assert torch.equal(targets[is_digit], one_hot[is_digit])
    assert (targets[~is_digit] == 0.1).all()


def test_non_digits_are_drawn_as_promised(train):
    torch.manual_seed(0)
    x = torch.rand(100, 1, 28, 28)
    images, _ = train.add_non_digits(x, torch.full((100,), 4))
    third = round(train.NON_DIGITS * 100 / 3)
    for i in range(3 * third):
        digit = x[i, 0]
        turned, mirrored = torch.rot90(digit), torch.fliplr(digit)
        expected = [digit.maximum(turned), digit.maximum(mirrored), mirrored][
            i // third
        ]
        torch.testing.assert_close(images[i, 0], expected)
