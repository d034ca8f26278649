"""What is drawn into MNIST's 1s and 7s, and what is no digit."""

import pytest
import torch


def added(train, label: int, width: int = 3) -> torch.Tensor:
    """(N, 28, 28) 0 or 1, the ink that copies of a stem from column 12 on got."""
    before = torch.zeros(1000, 28, 28, dtype=torch.uint8)
    before[:, 4:24, 12 : 12 + width] = 255
    digits = train.Digits(before.clone(), torch.full((1000,), label))
    torch.manual_seed(0)
    images, labels = train.add_strokes(digits)
    assert digits.images.equal(before), "the caller's images are not drawn on"
    assert images.dtype == torch.uint8 and labels.equal(digits.labels)
    changed = (images != before).flatten(1).any(1)
    expected = 0 if label not in (1, 7) else train.STROKES
    assert abs(changed.float().mean() - expected) < 0.06
    ink = images[changed] > 127
    for image in ink:  # each was moved to its centre of mass: bring the stem back
        column = int((image.sum(0) > 16).int().argmax())
        row = int(image[:, column].int().argmax())
        image.copy_(image.roll((4 - row, 12 - column), (0, 1)))
    return (ink & (before[0] < 128)).float()


def test_digits_are_centred_again(train):
    """Where MNIST's are: else their place would give a stroke away."""
    images = torch.zeros(100, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 12:15] = 255
    ink = train.draw(train.UPSTROKE, images).float()
    axis, mass = torch.arange(28.0), ink.sum((1, 2))
    for side in (1, 2):
        centre = ink.sum(3 - side) @ axis / mass
        assert (centre - 14).abs().max() < 0.6


def test_ones_get_an_upstroke(train):
    """It begins in the upper half of the stem and goes left and down."""
    ink = added(train, 1)
    left, right = ink[:, :, :12], ink[:, :, 15:]
    assert left.flatten(1).any(1).float().mean() > 0.95
    assert right.sum() < 0.1 * left.sum()
    rows = torch.arange(28.0)
    near, far = left[:, :, 9:].sum((0, 2)), left[:, :, :7].sum((0, 2))
    assert near @ rows / near.sum() + 1 < far @ rows / far.sum() < 20


@pytest.mark.parametrize("width", [2, 4])
def test_sevens_get_a_bar(width, train):
    """Across the stem, at half its height, as wide as the stem."""
    ink = added(train, 7, width)
    sides = ink[:, :, :12], ink[:, :, 12 + width :]
    assert all(side.flatten(1).any(1).float().mean() > 0.9 for side in sides)
    rows = ink.nonzero()[:, 1].float()
    assert 12 < rows.mean() < 16 and rows.std() < 3
    # In the column beside the stem.
    assert abs(ink[:, :, 11].sum(1).mean() - width) < 0.8


def test_other_digits_stay(train):
    assert not len(added(train, 4))


@pytest.mark.parametrize("n", [1, 9, 100, 256])
def test_what_is_no_digit(n, train):
    torch.manual_seed(0)
    x, labels = torch.rand(n, 1, 28, 28), torch.arange(n) % 10
    before = x.clone()
    images, targets = train.add_non_digits(x, labels)
    assert x.equal(before), "the caller's images are not drawn on"
    third = round(train.NON_DIGITS * n / 3)
    made = [digit.maximum(digit.rot90(1, (1, 2))) for digit in x[:third]]
    made += [digit.maximum(digit.flip(2)) for digit in x[third : 2 * third]]
    made += [digit.flip(2) for digit in x[2 * third : 3 * third]]
    assert images.equal(torch.stack([*made, *x[3 * third :]]))
    for i, label in enumerate(labels.tolist()):
        # Mirrored, these are digits still.
        expected = i >= 3 * third or (i >= 2 * third and label in (0, 1, 8))
        assert targets[i].equal(
            torch.eye(10)[label] if expected else torch.full((10,), 0.1)
        )
