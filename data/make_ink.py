#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "opencv-python-headless==5.0.0.93",
#     "torch==2.15.0",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Train the network that finds ink in read.py; write data/ink.pt.

    uv run data/make_ink.py                      11 minutes on two cores (bf16)
    uv run data/make_ink.py --start data/ink.pt --seed 1 --steps 8000 --lr 2.5e-3
    uv run data/make_ink.py --pages pages.png    sixty pages, and the ink on them

data/ink.pt was made by the first two, the second of which goes on with other pages;
in the first, HEIGHT ended at 60.

It learns from pages that this script draws: digits of MNIST's training half, of a font
and of straight strokes, written with many pens on many papers, under lamps, seen by
cameras. As they are drawn, it is known where ink is, and whether it is a digit's. Ruled
lines, boxes, shadows and things on the table are no ink.
"""

import argparse
import io
import math
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

RAW = Path("data/mnist/MNIST/raw")
HELD_OUT = 1 / 6  # of MNIST's training digits, the last, are for the score alone

# %% Training
STEPS = 11_000
BATCH_SIZE = 8  # pages
SIDES = 96, 160, 160, 224  # pixels of the pages of a batch, in turn
LR = 4e-3  # at its peak
WARMUP = 0.1  # share of the steps in which the learning rate rises
WEIGHT_DECAY = 1e-3
INK_WEIGHT = 3.0  # of a missed pixel of ink, where paper taken for ink counts 1
DIGIT_WEIGHT = 0.1  # of the question "a digit's?", beside "ink?"
SCORED = 200  # pages

# %% Pages. A pair is a range from which each page, digit or line takes its own number;
# a single number is mostly a chance. Lengths are in heights of a digit, brightness is
# from 0 to 1.
HEIGHT = 11, 64  # pixels of a digit
TINY, TINY_HEIGHT = 0.07, (4, 10)  # pixels: too low to be read, so no ink

# What is written
NOTHING, LETTERS_ALONE, SINGLE = 0.1, 0.09, 0.35  # else rows of digits
PRINTED, STRAIGHT = 0.08, 0.37  # digits of a font; of few strokes, as on a screen
FONT_WEIGHT = 300, 800
WITH_SIGNS, SIGN = 0.2, 0.25  # pages of digits with signs and letters; how many
SIGNS = ".,-/:+="
LETTERS = "AaCcdeEfFHhKkMmNnPpRrTtUuVvWwXxYyL"  # those that look like no digit
LETTER_HEIGHT = 0.8, 1.2
TURNED = 0.4  # of the letters: digits, mirrored or turned by 90°
THINGS, THINGS_ALONE = 0.12, 0.85  # filled shapes, with and without writing
THING = 0.5, 4

# How it is written
PEN = 0.03, 0.22  # width
OWN_STROKE = 0.35  # MNIST's or the font's, in place of a pen's
UPRIGHT, UPRIGHT_STRAIGHT = 0.3, 0.75  # neither slanted nor tilted
SLANT, TILT, WIDTH = (-0.25, 0.25), (-0.1, 0.1), (0.6, 1.3)
SMOOTH = 0.5, 1.0  # twentieths of a height: without, rules alone have smooth edges
JITTER = 0, 0.08  # of the points of straight digits, half of which have none
BAR, UPSTROKE, FOOT = 0.25, 0.35, 0.3  # of 7s and 1s, as most of the world writes
GAP, TIGHT_GAP, WIDE_GAP = (0.1, 1), (-0.06, 0.08), (1, 3)  # between digits
TIGHT, WIDE = 0.2, 0.08
PITCH, SLOPE = (1.15, 2.6), (-0.2, 0.2)  # of rows
MOAT = 0.035  # paper between two digits that touch: they are to come apart

# What it is written on
CLEAN = 0.25  # white, mostly without a lamp, as on a screen
PAPER, GRAIN, FIBRE = (0.55, 1), (0, 0.03), (0, 0.02)
RULED = 0.06, 0.08, 0.11, 0.08  # lines, squares, cells, boxes around digits
RULE_WIDTH, RULE_SLOPE, RULE_WAVE = 0.08, (-0.06, 0.06), (0, 0.05)
FINE_RULES, WIDE_RULES = (0.12, 0.6), (0.6, 2)  # their distance
BOX_MARGIN, CELL = (0.02, 0.5), (0.8, 4)
RULES, STRONG_RULES = (0.05, 0.4), (0.1, 0.9)  # how near to the ink's brightness
INK, CONTRAST, FAINT = (0, 0.3), (0.6, 1), (0.2, 1)
UNEVEN, GAPS = 0.35, (0.1, 0.75)  # pencils and dry pens
TEXTURE = 0.4  # of the pages without digits
EDGE = 0.14  # pages with a table or a thing at the edge

# How it is lit and seen
LAMP, VIGNETTE, DARK_CORNER = (0, 0.5), 0.3, (0.3, 0.85)
SHADOW, SHADOW_DEPTH, SHADOW_EDGE = 0.3, (0.2, 0.75), (0.3, 12)  # edge in pixels
INVERTED, DIM = 0.3, (0.3, 1)
BLUR = 0.3, 0.035  # from pixels to heights
LOW, LOW_HEIGHT = 0.35, (11, 26)  # low resolution: pixels of a digit
JAGGED = 0.35  # of these: each pixel is ink or paper
NOISE = 0.06  # at most, and at most a quarter of the contrast
JPEG, QUALITY = 0.5, (35, 95)
BORDER, MOST_CUT = 0.4, 30  # pixels: the picture ends before the page
CROPPED, CROP = 0.6, (-0.03, 0.5)  # of these with one digit: it ends near the digit

# Digits of few strokes: for each a list of lines, in a box of 1 × 1.
ROUND = (0.5, 0), (0.9, 0.2), (1, 0.5), (0.9, 0.8), (0.5, 1), (0.1, 0.8), (0, 0.5)
STROKES = [
    [[*ROUND, (0.1, 0.2), (0.5, 0)]],
    [[(0.5, 0), (0.5, 1)]],
    [[(0, 0.2), (0.2, 0), (0.8, 0), (1, 0.2), (0.9, 0.45), (0, 1), (1, 1)]],
    [[(0, 0), (0.5, 0), (1, 0.2), (0.5, 0.45), (1, 0.7), (0.8, 1), (0.3, 1), (0, 0.9)]],
    [[(0.2, 0), (0, 0.6), (1, 0.6)], [(0.7, 0.1), (0.7, 1)]],
    [[(1, 0), (0.1, 0), (0.1, 0.45), (0.7, 0.4), (1, 0.7), (0.7, 1), (0, 0.95)]],
    [[(0.8, 0), (0.2, 0.4), (0, 0.75), (0.4, 1), (0.9, 0.9), (0.9, 0.6), (0, 0.7)]],
    [[(0, 0), (1, 0), (0.3, 1)]],
    [
        [
            (0.5, 0.4),
            (0, 0.2),
            (0.5, 0),
            (1, 0.2),
            (0, 0.8),
            (0.5, 1),
            (1, 0.8),
            (0.5, 0.4),
        ]
    ],
    [[(1, 0.1), (0.5, 0), (0, 0.2), (0.2, 0.45), (1, 0.35), (1, 0.05), (1, 1)]],
]
VARIANTS = {  # of half of these digits
    1: [[(-0.2, 0.4), (0.5, 0), (0.5, 1)]],
    4: [[(0.75, 1), (0.75, 0), (0, 0.65), (1, 0.65)]],
    7: [[(0, 0), (1, 0), (0.3, 1)], [(0.2, 0.5), (0.9, 0.5)]],
}


class Random(np.random.Generator):
    """Random numbers, the same for the same seed."""

    def __init__(self, *seed: int):
        super().__init__(np.random.PCG64(seed))

    def chance(self, p: float) -> bool:
        return self.random() < p

    def near(self, limits: tuple) -> float:
        return self.uniform(*limits)

    def log(self, limits: tuple) -> float:
        """A number whose logarithm is uniform: small and large ones alike."""
        return math.exp(self.uniform(*np.log(limits)))

    def hills(self, side: int, n: int) -> np.ndarray:
        """(side, side) float32, normal, with about n hills along a side."""
        values = self.standard_normal((n, n), np.float32)
        return cv2.resize(values, (side, side), interpolation=cv2.INTER_CUBIC)


# %% Shapes: (h, w) uint8, light on black
class Mnist:
    """Digits of MNIST's training half."""

    def __init__(self, held_out: bool):
        images = np.fromfile(RAW / "train-images-idx3-ubyte", np.uint8)
        labels = np.fromfile(RAW / "train-labels-idx1-ubyte", np.uint8)
        images, labels = images[16:].reshape(-1, 28, 28), labels[8:]  # after headers
        border = round((1 - HELD_OUT) * len(labels))
        chosen = slice(border, None) if held_out else slice(border)
        self.images, self.labels = images[chosen], labels[chosen]

    def pick(self, r: Random, digits=range(10)) -> tuple[np.ndarray, int]:
        """An image of one of these digits, and which."""
        while True:
            i = r.integers(len(self.labels))
            if self.labels[i] in digits:
                return self.images[i].copy(), int(self.labels[i])


def crop(shape: np.ndarray) -> np.ndarray:
    x, y, w, h = cv2.boundingRect((shape > 40).astype(np.uint8))
    return shape[y : y + h, x : x + w]


def print_character(r: Random, character: str, font: str) -> np.ndarray:
    page = np.zeros((120, 120), np.uint8)
    weight = int(r.near(FONT_WEIGHT))
    cv2.putText(page, character, (30, 80), 255, cv2.FontFace(font), 60, weight)
    return page


def draw_lines(page: np.ndarray, points, width: float) -> None:
    points = np.array(points).round().astype(np.int32)
    cv2.polylines(page, [points], False, 255, max(1, round(width)), cv2.LINE_AA)


def add_strokes(r: Random, image: np.ndarray, digit: int) -> np.ndarray:
    """MNIST's 7 with a bar, or its 1 with an upstroke and a foot."""
    _, top, _, height = cv2.boundingRect((image > 100).astype(np.uint8))
    bottom, width = top + height - 1, r.uniform(2, 4)
    if digit == 7 and r.chance(BAR):
        y, half, up = (
            top + height * r.uniform(0.4, 0.65),
            r.uniform(3, 7),
            r.uniform(-2, 2),
        )
        x = np.average(range(28), weights=image[int(y)] + 1e-3)
        draw_lines(image, [(x - half, y + up), (x + half, y - up)], width)
    if digit == 1 and r.chance(UPSTROKE):
        x = np.average(range(28), weights=image[top + 1] + 1e-3)
        length, angle = height * r.uniform(0.25, 0.75), r.uniform(0.35, 1.1)
        end = x - length * math.sin(angle), top + length * math.cos(angle)
        draw_lines(image, [(x, top), end], width)
    if digit == 1 and r.chance(FOOT):
        x = np.average(range(28), weights=image[bottom - 1] + 1e-3)
        draw_lines(
            image, [(x - r.uniform(2, 6), bottom), (x + r.uniform(2, 6), bottom)], width
        )
    return image


def bend(points: np.ndarray) -> np.ndarray:
    """A smooth curve through (n, 2) points (Catmull and Rom 1974)."""
    a = np.concatenate([points[:1], points, points[-1:]])
    a, b, c, d = a[:-3], a[1:-2], a[2:-1], a[3:]
    t = np.linspace(0, 1, 8)[:, None, None]
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
    curve = (curve + (3 * b - a - 3 * c + d) * t**3) / 2
    return curve.swapaxes(0, 1).reshape(-1, 2)


def draw_straight(r: Random) -> np.ndarray:
    """A digit of a few straight or smooth strokes."""
    digit = int(r.integers(10))
    lines = STROKES[digit]
    if digit in VARIANTS and r.chance(0.5):
        lines = VARIANTS[digit]
    jitter = r.near(JITTER) if r.chance(0.5) else 0.0
    smooth, size = r.chance(0.5), (r.uniform(25, 60), 80)
    page = np.zeros((120, 120), np.uint8)
    for line in lines:
        points = np.array(line) + jitter * r.standard_normal((len(line), 2))
        if smooth and len(points) > 3:
            points = bend(points)
        draw_lines(page, 60 + (points - 0.5) * size, 8)
    return page


def make_shape(r: Random, mnist: Mnist, kind: str) -> np.ndarray:
    """A "letter", or a digit that is "printed", "straight", or MNIST's."""
    if kind == "printed":
        return crop(print_character(r, str(r.integers(10)), "uni"))
    if kind == "straight":
        return crop(draw_straight(r))
    if kind == "mnist":
        return crop(add_strokes(r, *mnist.pick(r)))
    if r.chance(TURNED):
        image, _ = mnist.pick(r, (2, 3, 4, 5, 7))
        return crop(
            np.fliplr(image) if r.chance(0.6) else np.rot90(image, r.choice((1, 3)))
        )
    font = ("sans", "italic", "uni")[r.integers(3)]
    return crop(print_character(r, LETTERS[r.integers(len(LETTERS))], font))


# %% Ink: (h, w) float32 from 0 to 1
class Hand(NamedTuple):
    """How the digits of a page are written."""

    height: float  # pixels
    pen: float  # width in heights; 0 is the stroke of the shape itself
    slant: float  # heights to the right for each height up
    tilt: float
    width: float  # times as wide


def make_hand(r: Random, height: float, upright: bool, thinnest: float) -> Hand:
    pen = 0.0 if r.chance(OWN_STROKE) else max(r.log(PEN), thinnest)
    slant, tilt = (0.0, 0.0) if upright else (r.near(SLANT), r.near(TILT))
    return Hand(height, pen, slant, tilt, r.log(WIDTH))


def write(r: Random, shape: np.ndarray, height: float, hand: Hand) -> np.ndarray:
    """Write a shape at this height in pixels; the ink fills the result."""
    fine = 2 if height < 40 else 1  # small digits are written at twice the size
    room = max(3, max(shape.shape) // 5)
    low = len(shape) < 30  # of MNIST's few pixels
    shape = np.pad(shape, room).astype(np.float32) / 255
    scale = fine * height / (shape.shape[0] - 2 * room)
    scale = min(scale, fine * 1.7 * height / (shape.shape[1] - 2 * room))
    h, w = (max(2, round(scale * n)) for n in shape.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    shape = cv2.resize(shape, (w, h), interpolation=how)
    slant = hand.slant + (r.uniform(-0.1, 0.1) if hand.slant else 0)
    moves = np.float32([[hand.width, slant, 0], [hand.tilt, 1, 0]])
    moves[:, 2] = (w / 2, h / 2) - moves[:, :2] @ (w / 2, h / 2)
    shape = cv2.warpAffine(shape, moves, (w, h), flags=cv2.INTER_CUBIC)
    if low:
        shape = cv2.GaussianBlur(shape, (0, 0), fine * height / 20 * r.near(SMOOTH))
    if hand.pen:
        filled = (shape > 0.4).astype(np.uint8)
        depth = cv2.distanceTransform(filled, cv2.DIST_L2, 5)
        # The middle line is where no pixel nearby is much deeper in the shape.
        near = np.ones([max(3, int(0.06 * height * fine) | 1)] * 2, np.uint8)
        middle = filled * (depth >= 0.75 * cv2.dilate(depth, near))
        away = cv2.distanceTransform(1 - middle, cv2.DIST_L2, 5)
        width = hand.pen * height * fine
        ink = (width / 2 + 0.5 - away).clip(0, 1)
        if width > 2:  # a pen's edges are smooth, a middle line's are not
            ink = cv2.GaussianBlur(ink, (0, 0), width * r.uniform(0.25, 0.5))
            ink = ((ink - 0.5) * 3 + 0.5).clip(0, 1)
    else:
        ink = ((shape - 0.5) * r.near((2, 6)) + 0.5).clip(0, 1)
    size = max(1, w // fine), max(1, h // fine)
    ink = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    x, y, w, h = cv2.boundingRect((ink > 0.3).astype(np.uint8))
    return ink[y : y + h, x : x + w]


class Page:
    """What is written on a page."""

    def __init__(self, side: int, hand: Hand, clean: bool):
        self.side, self.hand, self.clean = side, hand, clean
        # Each (side, side) float32.
        self.digits, self.signs, self.things = np.zeros((3, side, side), np.float32)
        self.crowd = np.zeros((side, side), np.uint8)  # how many are near a pixel
        self.boxes = []  # of the digits: x, y, width, height

    def put(self, ink: np.ndarray, x: float, y: float, is_digit: bool) -> None:
        x, y = int(x), int(y)
        h, w = ink.shape
        page = np.zeros((self.side, self.side), np.float32)
        left, top = max(x, 0), max(y, 0)
        part = ink[top - y : max(0, self.side - y), left - x : max(0, self.side - x)]
        page[top : top + part.shape[0], left : left + part.shape[1]] = part
        layer = self.digits if is_digit else self.signs
        np.maximum(layer, page, out=layer)
        moat = np.ones([2 * max(1, round(MOAT * self.hand.height)) + 1] * 2, np.uint8)
        self.crowd += cv2.dilate((page > 0.4).astype(np.uint8), moat)
        if is_digit:
            self.boxes.append((x, y, w, h))


def write_shape(
    r: Random, page: Page, mnist: Mnist, kind: str, x: float, y: float
) -> float:
    """Write a shape right of x in the row whose top is y; return its width."""
    height = page.hand.height
    tall = height * r.uniform(0.85, 1.1)
    if kind == "letter":
        tall *= r.near(LETTER_HEIGHT)
    ink = write(r, make_shape(r, mnist, kind), tall, page.hand)
    page.put(ink, x, y + height - len(ink), kind != "letter")
    return ink.shape[1]


def write_sign(r: Random, page: Page, x: float, y: float) -> float:
    """Write a sign right of x in the row whose top is y; return its width."""
    height, sign = page.hand.height, SIGNS[r.integers(len(SIGNS))]
    wide, middle, up = r.uniform(0.3, 0.7), r.uniform(0.4, 0.6), r.uniform(-0.08, 0.08)
    dash = (0, middle), (wide, middle + up)
    lines = {
        ".": [[(0.1, 0.95), (0.12, 0.95)]],
        ",": [[(0.1, 0.9), (r.uniform(0, 0.1), r.uniform(1.1, 1.3))]],
        "-": [dash],
        "/": [[(wide, r.uniform(-0.3, -0.05)), (0, r.uniform(1.1, 1.3))]],
        ":": [[(0.1, 0.95), (0.12, 0.95)], [(0.1, 0.5), (0.12, 0.5)]],
        "+": [dash, [(wide / 2, middle - wide / 2), (wide / 2, middle + wide / 2)]],
        "=": [dash, [(0, middle + 0.25), (wide, middle + 0.25)]],
    }
    drawn, width = np.zeros((page.side, page.side), np.uint8), page.hand.pen or 0.12
    for line in lines[sign]:
        draw_lines(drawn, np.array(line) * height + (x, y), width * height)
    np.maximum(page.signs, drawn / np.float32(255), out=page.signs)
    return height * max(x for line in lines[sign] for x, _ in line)


def add_thing(r: Random, page: Page) -> None:
    """A filled shape of no meaning, round, angular or wavy."""
    size, n = page.hand.height * r.log(THING), r.integers(3, 9)
    angles = np.sort(r.uniform(0, 2 * np.pi, n))
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    points *= size * r.uniform(0.2, 0.6, (n, 1))
    if r.chance(0.5):
        points = bend(np.concatenate([points, points[:1]]))
    drawn = np.zeros((page.side, page.side), np.uint8)
    points += r.uniform(-0.1, 1.1, 2) * page.side
    cv2.fillPoly(drawn, [points.round().astype(np.int32)], 255, cv2.LINE_AA)
    written = np.maximum(page.digits, page.signs) > 0.1
    if r.chance(0.8):  # beside the writing, not under it
        drawn[cv2.dilate(written.astype(np.uint8), np.ones((5, 5))) > 0] = 0
    np.maximum(page.things, drawn / np.float32(255), out=page.things)


def write_rows(r: Random, page: Page, mnist: Mnist, kind: str, signs: bool) -> None:
    """Rows of digits or letters, from a random place to the end of the page."""
    height = page.hand.height
    gaps = [TIGHT_GAP, WIDE_GAP, GAP]
    gap = gaps[r.choice(3, p=[TIGHT, WIDE, 1 - TIGHT - WIDE])]
    slope = r.near(SLOPE) if r.chance(0.5) else 0.0
    pitch = height * r.near(PITCH)
    y = r.uniform(-0.6 * height, pitch)
    while y < page.side:
        x = r.uniform(-0.5 * height, 0.6 * page.side)
        while x < page.side and not r.chance(0.1):
            top = y + slope * x
            what = kind
            if signs and r.chance(SIGN):
                what = "sign" if r.chance(0.75) else "letter"
            if what == "sign":
                x += write_sign(r, page, x, top)
            else:
                x += write_shape(r, page, mnist, what, x, top)
            x += height * r.near(gap)
        y += pitch


def fill(r: Random, page: Page, mnist: Mnist, kind: str) -> None:
    """Write one digit of the kind, or rows of them, or letters, or nothing."""
    shares = [NOTHING, LETTERS_ALONE, SINGLE]
    what = r.choice(4, p=[*shares, 1 - sum(shares)])
    if what == 1:
        write_rows(r, page, mnist, "letter", True)
    if what == 2:
        height = page.hand.height
        x, y = r.uniform(-0.1 * height, max(1, page.side - 0.8 * height), 2)
        write_shape(r, page, mnist, kind, x, y)
    if what == 3:
        write_rows(r, page, mnist, kind, r.chance(WITH_SIGNS))
    if r.chance(THINGS if what else THINGS_ALONE):
        for _ in range(r.integers(1, 4)):
            add_thing(r, page)


# %% Paper, light and camera: (side, side) float32
def draw_parallels(r: Random, drawn: np.ndarray, first, step, width, down) -> None:
    """Lines across or down the page, a step from each other."""
    side, slope = len(drawn), 0.0 if r.chance(0.4) else r.near(RULE_SLOPE)
    for at in np.arange(first % step - side, 2 * side, step):
        ends = np.array([(0, at), (side, at + slope * side)])
        draw_lines(drawn, ends[:, ::-1] if down else ends, width)


def draw_rules(r: Random, page: Page) -> np.ndarray:
    """Lines across the page, one or both ways, or cells or boxes around its digits."""
    side, height = page.side, page.hand.height
    drawn = np.zeros((side, side), np.uint8)
    kinds = ["lines", "squares", "cells", "boxes", "none"]
    kind = kinds[r.choice(5, p=[*RULED, 1 - sum(RULED)])]
    if (page.clean or len(page.boxes) == 1) and r.chance(0.6):
        kind = "none"
    width = r.integers(1, 2 + max(1, int(RULE_WIDTH * height)))
    margin = height * r.near(BOX_MARGIN)
    x, y, _, _ = page.boxes[0] if page.boxes else r.integers(0, side, 4)
    if kind in ("lines", "squares"):
        step = max(5, height * r.near(FINE_RULES if r.chance(0.4) else WIDE_RULES))
        # On half of the pages the first digit stands on a line.
        first = (
            y + height * r.uniform(0.9, 1.2) if r.chance(0.5) else r.uniform(0, step)
        )
        draw_parallels(r, drawn, first, step, width, down=False)
        if kind == "squares":
            draw_parallels(r, drawn, r.uniform(0, step), step, width, down=True)
    if kind == "cells":
        draw_parallels(r, drawn, y - margin, height + 2 * margin, width, down=False)
        left, step = x - height * r.uniform(0.05, 0.4), height * r.near(CELL)
        draw_parallels(r, drawn, left, step, width, down=True)
    if kind == "boxes":
        for x, y, w, h in page.boxes:
            corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
            corners = (
                (x, y) - np.float64(margin) + corners * (w + 2 * margin, h + 2 * margin)
            )
            draw_lines(drawn, corners, width)
    return wave(r, drawn / np.float32(255), height)


def wave(r: Random, rules: np.ndarray, height: float) -> np.ndarray:
    """Paper is not flat; else a perfectly straight stroke would be no ink."""
    side = len(rules)
    if r.chance(0.4):
        return rules
    y, x = np.mgrid[:side, :side].astype(np.float32)
    size = np.float32(height * r.near(RULE_WAVE))
    x, y = (v + size * r.hills(side, int(r.integers(3, 8))) for v in (x, y))
    return cv2.remap(rules, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def cast_light(r: Random, side: int) -> np.ndarray:
    """Factors of the paper's brightness: a lamp, dark corners, a shadow."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)

    def ramp(low: float, high: float) -> np.ndarray:
        angle = r.uniform(0, 2 * np.pi)
        return np.cos(angle) * x + np.sin(angle) * y - r.uniform(low, high)

    light = 1 - r.near(LAMP) * (1 + ramp(0, 0)) / 2
    if r.chance(VIGNETTE):
        away = (x - r.uniform(-1.5, 1.5)) ** 2 + (y - r.uniform(-1.5, 1.5)) ** 2
        light *= 1 - r.near(DARK_CORNER) * (away / r.uniform(2, 9)).clip(0, 1)
    if r.chance(SHADOW):
        inside = ramp(-0.8, 0.8)
        if r.chance(0.5):  # a stripe
            inside = r.uniform(0.05, 0.5) - np.abs(inside)
        soft = r.near(SHADOW_EDGE) * 2 / side
        light *= 1 - r.near(SHADOW_DEPTH) / (1 + np.exp(-(inside / soft).clip(-30, 30)))
    return light


def cover_edge(r: Random, side: int) -> np.ndarray:
    """(side, side) bool: a table or a thing at the edge of the picture."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = r.uniform(0, 2 * np.pi)
    out = np.cos(angle) * x + np.sin(angle) * y - r.uniform(0.3, 1)
    along = np.cos(angle) * y - np.sin(angle) * x - r.uniform(-0.8, 0.8)
    shape = r.integers(3)  # a straight edge, a corner, a round thing
    if shape == 1:
        return (out > 0) & (along > 0)
    return out - shape * r.uniform(0.15, 1.5) * along**2 > 0


def compress(r: Random, image: np.ndarray) -> np.ndarray:
    """What JPEG leaves of (h, w) float32 from 0 to 1."""
    pixels = (255 * image.clip(0, 1)).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(r.near(QUALITY))]
    _, file = cv2.imencode(".jpg", pixels, quality)
    return cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) / np.float32(255)


def paint(r: Random, page: Page, scale: float, contrast: float) -> np.ndarray:
    """Paper, its lines, and the ink on it."""
    side, ink = page.side, np.maximum(page.digits, page.signs)
    ink = np.maximum(ink, page.things)
    image = np.full((side, side), 1.0 if page.clean else r.near(PAPER), np.float32)
    if not page.clean:
        image += r.near(GRAIN) * r.hills(side, int(r.integers(8, 60)))
        image += r.near(FIBRE) * r.hills(side, side)
    if not page.boxes and r.chance(TEXTURE):
        image += r.uniform(0.1, 0.4) * (r.hills(side, 4) + r.hills(side, 20) / 2)
    dark = r.near(INK)
    strength = r.near(STRONG_RULES if r.chance(0.25) else RULES)
    image += strength * draw_rules(r, page) * (dark - image)
    if scale < 1:  # a low resolution, pixels of ink or paper
        small = cv2.resize(ink, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if r.chance(JAGGED):
            small = np.float32(small > r.uniform(0.25, 0.55))
        ink = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    if r.chance(UNEVEN):
        hills = r.hills(side, int(r.integers(4, side // 2)))
        ink = ink * (1 - r.near(GAPS) * (hills / 2 + 0.5).clip(0, 1))
    return image + contrast * ink * (dark - image)


def photograph(r: Random, image: np.ndarray, height: float, scale: float) -> np.ndarray:
    """What a camera or a screen's program makes of it: blur, low resolution, JPEG."""
    side = len(image)
    if r.chance(INVERTED):
        image = 1 - image * r.uniform(0.7, 1)
    black = r.uniform(0, 0.3) if r.chance(0.3) else 0.0
    white = r.near(DIM) if r.chance(0.4) else r.uniform(0.7, 1)
    image = black + (1 - black) * white * image
    if r.chance(0.5):
        sigma = r.uniform(BLUR[0], max(0.5, BLUR[1] * height))
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if scale < 1 and r.chance(0.5):
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )
        if r.chance(JPEG):
            image = compress(r, image)
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    return image


def draw_page(r: Random, mnist: Mnist, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(side, side) uint8 as a camera sees it; (2, side, side) bool: ink, a digit's."""
    height = r.near(TINY_HEIGHT) if r.chance(TINY) else r.log(HEIGHT)
    scale = min(1, r.log(LOW_HEIGHT) / height) if r.chance(LOW) else 1.0
    kinds = ["printed", "straight", "mnist"]
    kind = kinds[r.choice(3, p=[PRINTED, STRAIGHT, 1 - PRINTED - STRAIGHT])]
    upright = r.chance(UPRIGHT_STRAIGHT if kind == "straight" else UPRIGHT)
    # A camera does not see thinner pens.
    hand = make_hand(r, height, upright, 1.2 / (height * scale))
    page = Page(side, hand, r.chance(CLEAN))
    fill(r, page, mnist, kind)
    contrast = r.log(FAINT) if r.chance(0.4) else r.near(CONTRAST)
    image = paint(r, page, scale, contrast)
    hidden = np.zeros((side, side), bool)
    if r.chance(EDGE):
        hidden = cover_edge(r, side)
        image[hidden] = r.uniform(0, 1.2)
    if not page.clean or r.chance(0.3):
        image *= cast_light(r, side)
    image = photograph(r, image, height, scale)
    if r.chance(0.7):
        noise = min(NOISE, contrast / 4) * r.random() ** 2
        image += noise * r.standard_normal((side, side), np.float32)
    if r.chance(JPEG):
        image = compress(r, image)
    image = (255 * image.clip(0, 1)).astype(np.uint8)
    ink = (np.maximum(page.digits, page.signs) > 0.5) & (page.crowd < 2) & ~hidden
    if height < HEIGHT[0]:
        ink[:] = False
    if r.chance(BORDER):
        beyond = cut(r, page, image)
        ink &= ~beyond
    return image, np.stack([ink, ink & (page.digits > 0.5)])


def cut(r: Random, page: Page, image: np.ndarray) -> np.ndarray:
    """Let the picture end before the page, as read.py surrounds it.

    Returns the (side, side) bool that lies beyond.
    """
    left, top = r.uniform(0, MOST_CUT, 2)
    right, bottom = page.side - r.uniform(0, MOST_CUT, 2)
    if len(page.boxes) == 1 and r.chance(CROPPED):
        x, y, w, h = page.boxes[0]
        left, top = (x, y) - page.hand.height * r.uniform(*CROP, 2)
        right, bottom = (x + w, y + h) + page.hand.height * r.uniform(*CROP, 2)
    inside = np.zeros((page.side, page.side), bool)
    rows = slice(max(0, int(top)), max(1, math.ceil(bottom)))
    columns = slice(max(0, int(left)), max(1, math.ceil(right)))
    inside[rows, columns] = True
    part = image[rows, columns]
    if part.size:
        border = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
        image[~inside] = np.median(border)
    return ~inside


class Pages(Dataset):
    """Pages of batches in turn of SIDES; page i of a seed is always the same."""

    def __init__(self, n: int, seed: int, held_out: bool):
        self.n, self.seed, self.mnist = n, seed, Mnist(held_out)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        side = SIDES[i // BATCH_SIZE % len(SIDES)]
        return draw_page(Random(self.seed, i), self.mnist, side)


# %% Network, the same as in read.py
def convolutions(before: int, after: int) -> nn.Sequential:
    """Two convolutions with batch norm and relu, and these numbers of channels."""
    layers = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class InkNet(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that finds ink, with 256,936 parameters.

    It takes (N, 1, h, w) float32 from `standardize`, h and w multiples of 32, and gives
    (N, 2, h, w) logits: is it ink, and is the ink a digit's?
    """

    def __init__(self):
        super().__init__()
        channels = 16, 24, 32, 48, 64
        self.stem = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        levels = [(16, 16), *pairwise(channels)]
        self.down = nn.ModuleList(convolutions(a, b) for a, b in levels)
        self.up = nn.ModuleList(convolutions(a + b, a) for a, b in levels[:0:-1])
        self.out = nn.Conv2d(16, 8, 1)  # two logits for each of 2 × 2 pixels

    def forward(self, x: Tensor) -> Tensor:
        x, levels = F.relu(self.stem(x)), []
        for down in self.down:
            x = down(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for up, level in zip(self.up, levels[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), level], 1))
        return F.pixel_shuffle(self.out(x), 2)


def standardize(x: Tensor) -> Tensor:
    """Each of (N, 1, h, w) greys from 0 to 255, less its mean, over its deviation."""
    mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (deviation + 2)  # so that grain of a blank page stays faint


# %% Training
def compute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Of (N, 2, h, w) logits: cross-entropy and overlap of ink, and whose ink it is.

    The overlap is that of Milletari et al. 2016 (V-Net): it does not care that most
    of a page is paper.
    """
    ink, digit = target.float().unbind(1)
    p = logits[:, 0].sigmoid()
    overlap = (2 * (p * ink).sum() + 1) / (p.sum() + ink.sum() + 1)
    whose = F.binary_cross_entropy_with_logits(logits[:, 1], digit, reduction="none")
    whose = (whose * ink).sum() / (ink.sum() + 1)
    weight = torch.tensor(INK_WEIGHT)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits[:, 0], ink, pos_weight=weight
    )
    return 1.5 * cross_entropy + (1 - overlap) / 2 + DIGIT_WEIGHT * whose


def give_way(_worker: int) -> None:
    """Draw when the training leaves time: with two cores it is a third faster."""
    if hasattr(os, "nice"):  # not in Windows
        os.nice(10)


def train(model: InkNet, steps: int, lr: float, seed: int, device: str) -> InkNet:
    """Train on pages of this seed; on one machine it gives the same weights."""
    bf16 = device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=WARMUP, anneal_strategy="linear"
    )
    pages = Pages(steps * BATCH_SIZE, seed, held_out=False)
    loader = DataLoader(
        pages, BATCH_SIZE, num_workers=os.cpu_count(), worker_init_fn=give_way
    )
    bar = tqdm(loader, unit="step")
    for images, target in bar:
        x = standardize(images[:, None].float().to(device))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(x).float()
        loss = compute_loss(logits, target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=loss.item(), refresh=False)
    return model.eval()


@torch.inference_mode()
def score(model: InkNet) -> tuple[float, float]:
    """On pages of held-out digits: the overlap of ink found and drawn (intersection
    over union), and the share of the ink whose kind is right."""
    device = model.out.weight.device
    pages = Pages(SCORED, seed=1000, held_out=True)
    both = either = right = total = 0
    for i in range(SCORED):
        image, target = pages[i]
        x = torch.from_numpy(image)[None, None].float().to(device)
        ink, digit = (model(standardize(x))[0] > 0).cpu().numpy()
        both += (ink & target[0]).sum()
        either += (ink | target[0]).sum()
        right += (digit == target[1])[target[0]].sum()
        total += target[0].sum()
    return both / either, right / total


# %% Command line
def save_pages(path: Path) -> None:
    """Draw sixty pages and, below each, ink of digits in white, other ink in grey."""
    mnist, rows = Mnist(held_out=False), []
    for row in range(6):
        drawn = [draw_page(Random(2, row, i), mnist, 160) for i in range(10)]
        targets = [(target * [[[110]], [[145]]]).sum(0) for _, target in drawn]
        rows += [np.hstack([page for page, _ in drawn]), np.hstack(targets)]
    cv2.imwrite(str(path), np.vstack(rows))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=STEPS, help="default: %(default)s")
    add("--lr", type=float, default=LR, help="at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the pages (default: %(default)s)")
    add("--start", metavar="FILE", help="weights to start from")
    add("--output", type=Path, default="data/ink.pt", help="default: %(default)s")
    add(
        "--pages", type=Path, metavar="PNG", help="only draw sixty pages into this file"
    )
    args = parser.parse_args(argv)
    if not RAW.is_dir():
        sys.exit(f"error: no MNIST in {RAW}; `uv run train.py` downloads it")
    if args.pages:
        save_pages(args.pages)
        return
    torch.manual_seed(args.seed)
    model = InkNet()
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = train(model, args.steps, args.lr, args.seed, device)
    overlap, kinds = score(model)
    # Half precision: half the size, the same readings.
    state = {name: x.cpu().half() for name, x in model.state_dict().items()}
    buffer = io.BytesIO()  # a file's name would be in its bytes
    torch.save(state, buffer)
    args.output.write_bytes(buffer.getvalue())
    found = (
        f"{100 * overlap:.1f} % overlap of ink, {100 * kinds:.1f} % of its kind right"
    )
    print(f"On {SCORED} pages of held-out digits: {found}")


if __name__ == "__main__":
    main()
