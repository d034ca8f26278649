"""What is drawn into MNIST's 1s and 7s, and what is no digit."""

import pytest
import torch


def upright_ones(train, label: int, n: int = 1000):
    """`n` copies of a stem, 3 pixels wide and 20 high, with the label; some are 1s."""
    images = torch.zeros(n + 100, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 12:15] = 255
    labels = torch.full((n + 100,), label, dtype=torch.uint8)
    labels[n:] = 1
    return train.Digits(images, labels)


def added(train, label: int) -> torch.Tensor:
    """(N, 28, 28) 0 or 1, the ink that copies of a stem at columns 12 to 14 got."""
    digits = upright_ones(train, label)
    before = digits.images.clone()
    torch.manual_seed(0)
    images, labels = train.add_strokes(digits)
    assert digits.images.equal(before), "the caller's images are not drawn on"
    assert images.dtype == torch.uint8 and labels.equal(digits.labels)
    stroke = train.UPSTROKE if label == 1 else train.BAR
    changed = (images != before).flatten(1).any(1)[:1000]
    expected = 0 if label not in (1, 7) else train.STROKES
    assert abs(changed.float().mean() - expected) < 0.06
    back = [-pixels for pixels in stroke.shift]
    ink = images[:1000][changed].roll(back, (1, 2)) > 127
    return (ink & (before[0] < 128)).float()


def test_ones_get_an_upstroke(train):
    """It hangs from the upper half of the stem, to the left and down."""
    ink = added(train, 1)
    left, right = ink[:, :, :12], ink[:, :, 15:]
    assert left.flatten(1).any(1).float().mean() > 0.95
    assert right.sum() < 0.1 * left.sum()
    rows = torch.arange(28.0)
    near, far = left[:, :, 9:].sum((0, 2)), left[:, :, :7].sum((0, 2))
    assert near @ rows / near.sum() + 1 < far @ rows / far.sum() < 14


def test_sevens_get_a_bar(train):
    """Across the stem, at half its height."""
    ink = added(train, 7)
    for side in (ink[:, :, :12], ink[:, :, 15:]):
        assert side.flatten(1).any(1).float().mean() > 0.95
    rows = ink.nonzero()[:, 1].float()
    assert 13 < rows.mean() < 18 and rows.std() < 3


def test_other_digits_stay(train):
    assert not len(added(train, 4))


def test_no_ones_to_draw_with(train):
    digits = upright_ones(train, 7)
    digits.labels[:] = 7
    assert train.add_strokes(digits).images.equal(digits.images)


@pytest.mark.parametrize("n", [1, 9, 100, 256])
def test_what_is_no_digit(n, train):
    torch.manual_seed(0)
    x, labels = torch.rand(n, 1, 28, 28), torch.arange(n) % 10
    before = x.clone()
    images, targets, is_digit = train.add_non_digits(x, labels)
    assert x.equal(before), "the caller's images are not drawn on"
    third = round(train.NON_DIGITS * n / 3)
    made = [digit.maximum(digit.rot90(1, (1, 2))) for digit in x[:third]]
    made += [digit.maximum(digit.flip(2)) for digit in x[third : 2 * third]]
    made += [digit.flip(2) for digit in x[2 * third : 3 * third]]
    assert images.equal(torch.stack([*made, *x[3 * third :]]))
    for i, label in enumerate(labels.tolist()):
        # Mirrored, these are digits still.
        expected = i >= 3 * third or (i >= 2 * third and label in (0, 1, 8))
        assert is_digit[i] == expected
        assert targets[i].equal(
            torch.eye(10)[label] if expected else torch.full((10,), 0.1)
        )
