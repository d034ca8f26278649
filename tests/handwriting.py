#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["opencv-python-headless==5.0.0.93", "pillow==13.0.0", "scikit-learn==1.9.1", "torch==2.15.0",
#                 "torchvision==0.29.2", "tqdm==4.70.1"]  # scikit-learn has digits of other writers than MNIST's
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Measure predict.py on drawn photographs: digits with other pens, papers, lights and cameras, read back.

    uv run tests/handwriting.py --data-dir data/mnist --seed 7 --n 200
    uv run tests/handwriting.py --kinds shadow:3,blank --save misread    some variants; keeps what is misread

Prints how many of each kind are read (blank pages: refused; rows of digits: noticed), of how many; how many were said
to have no ink and how many to have several digits; and predict.py's milliseconds an image, on one core.
"""

import argparse
import io
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
import predict

DARK = [(20, 20, 25), (30, 30, 90), (60, 20, 20), (70, 70, 70)]
BLUE = [(40, 60, 160), (60, 90, 190), (110, 140, 210), (70, 110, 170)]
WHITE = [(255, 255, 255), (248, 248, 250), (240, 240, 236)]
WARM = [(240, 225, 195), (225, 205, 170), (250, 238, 215)]
TABLES = [(20, 20, 20), (70, 45, 30), (110, 75, 50), (60, 80, 120)]
LINES = [(150, 180, 225), (225, 150, 150), (175, 175, 175), (120, 140, 190)]

# Kind -> variants. size: longer side of the digit in pixels; margin: paper on each side, in digits; canvas: size of the
# whole image instead; pen: width of a thin stroke, thick: growth by a marker, both in digits; contrast: ink blended
# towards the paper; sigma: noise; table: width of what surrounds the page, in pages, and the angle of the page on it;
# box: how far from the digit a form's box is, in digits; row: this many digits beside each other; blank: no ink.
KINDS = {
    "scanned": [dict(size=(80, 300), sigma=(0, 6)),
                dict(size=(40, 90), paper=WHITE + [(215, 215, 215)], sigma=(0, 12), margin=(0.1, 2.5), jpeg=(50, 90)),
                dict(size=(400, 600), margin=(0.2, 1.5), sigma=(0, 25))],
    "chalk": [dict(size=(80, 300), ink=[(255,) * 3, (225, 225, 215)], paper=[(0, 0, 0), (20, 25, 22)], sigma=(0, 8)),
              dict(size=(50, 250), ink=[(230, 225, 180), (200, 215, 235), (240, 190, 190)], paper=[(45, 75, 60), (60, 60, 65)],
                   sigma=(4, 15), light=0.4, grain=0.5, jpeg=(60, 90), margin=(0.2, 2.0))],
    "transparent": [dict(size=(60, 300), alpha=True), dict(size=(20, 60), alpha=True, ink=BLUE, margin=(0, 1))],
    "blue": [dict(size=(100, 300), ink=BLUE, paper=WARM, light=0.4, sigma=(0, 6), jpeg=(50, 90)),
             dict(size=(60, 400), ink=[(140, 165, 225), (150, 170, 230)], paper=WARM, light=0.5, sigma=(2, 10), jpeg=(50, 80), margin=(0.2, 2.0))],
    "thin": [dict(size=(100, 300), pen=(0.03, 0.05), sigma=(0, 5)),
             dict(size=(60, 200), pen=(0.025, 0.06), ink=BLUE + DARK, sigma=(0, 10), jpeg=(60, 90), light=0.2)],
    "thick": [dict(size=(80, 300), thick=(0.03, 0.05), sigma=(0, 6)),
              dict(size=(60, 400), thick=(0.02, 0.06), ink=DARK + [(200, 30, 30), (30, 120, 60)], sigma=(0, 10), jpeg=(60, 90), margin=(0.2, 1.5))],
    "pencil": [dict(size=(100, 300), contrast=(0.25, 0.45), sigma=(4, 12), grain=0.6),
               dict(size=(80, 250), contrast=(0.15, 0.3), sigma=(3, 10), grain=0.4, pen=(0.04, 0.09), light=0.2, jpeg=(60, 90)),
               dict(size=(60, 150), contrast=(0.2, 0.3), sigma=(10, 18), margin=(0.3, 1.0))],
    "ruled": [dict(size=(80, 250), lines=1, pitch=(0.4, 1.3), sigma=(0, 6)),
              dict(size=(60, 200), lines=1, pitch=(0.12, 0.5), sigma=(2, 10), turn=2, jpeg=(60, 90), light=0.3, ink=BLUE + DARK, margin=(0.3, 2.5)),
              dict(size=(100, 300), lines=1, pitch=(0.5, 1.5), line=[(90, 90, 100), (80, 100, 160), (200, 80, 80)], ink=DARK, width=(1, 3)),
              dict(size=(60, 150), lines=1, pitch=(0.3, 0.8), canvas=(640, 480), pen=(0.04, 0.08), turn=3, sigma=(0, 8), jpeg=(60, 90))],
    "squared": [dict(size=(80, 250), lines=2, pitch=(0.2, 0.7), sigma=(0, 6)),
                dict(size=(60, 200), lines=2, pitch=(0.1, 0.3), sigma=(2, 10), turn=2, jpeg=(60, 90), light=0.3, ink=BLUE + DARK, margin=(0.3, 2.5)),
                dict(size=(100, 300), lines=2, pitch=(0.3, 1.2), line=[(100, 110, 130), (80, 100, 180)], ink=DARK, width=(1, 3)),
                dict(size=(60, 150), lines=2, pitch=(0.2, 0.5), canvas=(640, 480), pen=(0.04, 0.08), turn=3, sigma=(0, 8), jpeg=(60, 90))],
    "shadow": [dict(size=(80, 250), shadow=(0.4, 0.7), soft=(0, 2), sigma=(0, 6)),
               dict(size=(60, 200), shadow=(0.3, 0.8), soft=(2, 25), light=0.3, sigma=(2, 10), jpeg=(50, 90), margin=(0.3, 2.5), ink=DARK + BLUE),
               dict(size=(60, 200), shadow=(0.5, 0.8), soft=(0, 8), canvas=(640, 480), sigma=(0, 10), paper=WARM + WHITE, pen=(0.05, 0.1)),
               dict(size=(60, 200), shadow=(0.4, 0.8), soft=(0, 8), band=(0.2, 0.6), margin=(0.3, 2), sigma=(0, 8))],
    "small": [dict(size=(45, 60), canvas=(1600, 1200), light=0.4, sigma=(8, 20), jpeg=(60, 90)),
              dict(size=(40, 55), canvas=(1200, 1600), light=0.5, vignette=0.4, sigma=(15, 25), jpeg=(50, 80), ink=DARK + BLUE, paper=WARM + WHITE),
              dict(size=(45, 60), canvas=(1600, 1200), light=0.3, sigma=(5, 15), pen=(0.06, 0.1), jpeg=(50, 90))],
    "cropped": [dict(size=(80, 300), margin=(0, 0), sigma=(0, 6)),
                dict(size=(40, 120), margin=(0, 0), sigma=(2, 12), jpeg=(50, 90), thick=(0, 0.03), ink=DARK + BLUE, paper=WARM + WHITE),
                dict(size=(100, 300), margin=(0, 0.02), pen=(0.04, 0.08), light=0.3)],
    "tilted": [dict(size=(80, 300), tilt=15, sigma=(0, 6)),
               dict(size=(60, 200), tilt=15, sigma=(2, 12), pen=(0.05, 0.1), jpeg=(60, 90), light=0.3, ink=BLUE + DARK, margin=(0.2, 2))],
    "framed": [dict(size=(80, 300), table=(0.005, 0.05, 0), sigma=(0, 6)),
               dict(size=(60, 300), table=(0.05, 0.15, 10), ink=DARK + BLUE, paper=WHITE + WARM, light=0.2, sigma=(2, 10), jpeg=(60, 90))],
    "boxed": [dict(size=(80, 300), box=(0.1, 0.5), margin=(0.6, 2), line=DARK + BLUE, width=(2, 6), sigma=(0, 6)),
              dict(size=(60, 200), box=(0.05, 0.3), margin=(0.4, 2), width=(2, 4), ink=DARK + BLUE, light=0.2, sigma=(2, 10), jpeg=(60, 90))],
    "mixed": [dict(size=(80, 200), lines=1, pitch=(0.3, 1), shadow=(0.5, 0.8), soft=(0, 6), sigma=(0, 6)),
              dict(size=(80, 200), lines=2, pitch=(0.2, 0.6), contrast=(0.35, 0.5), line=[(190, 205, 230), (215, 215, 215)], sigma=(2, 6), light=0.3),
              dict(size=(60, 200), ink=[(240, 240, 240)], paper=[(40, 70, 55)], shadow=(0.5, 0.8), soft=(0, 10), tilt=10, sigma=(2, 8), jpeg=(60, 90)),
              dict(size=(50, 70), canvas=(1200, 900), lines=1, pitch=(0.6, 1.2), light=0.4, sigma=(5, 12), jpeg=(60, 90))],
    "edge": [dict(size=(80, 300), margin=(0.01, 0.05), sigma=(0, 6)),
             dict(size=(60, 200), margin=(0.01, 0.08), ink=DARK + BLUE, light=0.2, sigma=(2, 10), jpeg=(60, 90))],
    "blank": [dict(size=(50, 300), blank=True),
              dict(size=(50, 300), blank=True, sigma=(3, 25)),
              dict(size=(50, 300), blank=True, light=0.6, vignette=0.5, sigma=(0, 8)),
              dict(size=(50, 300), blank=True, light=0.3, paper=WHITE + WARM, sigma=(2, 12), jpeg=(60, 95)),
              dict(size=(50, 200), blank=True, lines=1, pitch=(0.3, 1), light=0.2, sigma=(0, 8)),
              dict(size=(50, 200), blank=True, lines=2, pitch=(0.1, 0.25), light=0.2, sigma=(0, 8))],
    "row": [dict(size=(60, 200), row=count, sigma=(0, 8), light=0.2) for count in (2, 3, 4)],
    "others": [{}],
}  # fmt: skip


def thinned(mask):
    """Zhang and Suen's thinning (1984): strokes of a (h, w) bool mask -> lines one pixel wide."""
    before = None
    while before is None or not torch.equal(before, mask):
        before = mask
        for step in (0, 1):
            p = F.pad(mask, (1, 1, 1, 1)).int()
            h, w = mask.shape
            ring = [p[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
                    for dy, dx in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))]  # fmt: skip
            n, turns = sum(ring), sum((1 - ring[k]) * ring[(k + 1) % 8] for k in range(8))
            p2, _, p4, _, p6, _, p8, _ = ring
            sides = (p2 * p4 * p6 + p4 * p6 * p8) if step == 0 else (p2 * p4 * p8 + p2 * p6 * p8)
            mask = mask & ~((n >= 2) & (n <= 6) & (turns == 1) & (sides == 0))
    return mask


def stroke_map(digit, rng, size, pen=None, thick=None, tilt=0):
    """A (28, 28) uint8 digit -> (h, w) float ink coverage 0..1, its longer side about `size` pixels, cropped to the ink."""
    image = Image.frombytes("L", (28, 28), bytes(digit.flatten().tolist()))
    image = image.crop(image.getbbox())
    scale = 4 * 100 / max(image.size) / 4
    image = image.resize([max(8, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("L", (image.width + 60, image.height + 60))
    canvas.paste(image, (30, 30))
    if tilt:
        canvas = canvas.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC)
    ink = torch.tensor(list(canvas.filter(ImageFilter.GaussianBlur(1.5)).tobytes())).view(1, 1, canvas.height, canvas.width) / 255
    if pen:  # the middle line of the strokes, drawn again with a pen of one width
        radius = rng.uniform(*pen) * 50
        side = 2 * int(radius + 2) + 1
        y, x = torch.meshgrid(*(torch.arange(side) - side // 2,) * 2, indexing="ij")
        tip = (radius + 0.5 - (x * x + y * y).sqrt()).clamp(0, 1)
        line = thinned(ink[0, 0] > 0.35).nonzero()
        ink = torch.zeros_like(ink)
        for row, column in line.tolist():
            spot = ink[0, 0, row - side // 2 : row + side // 2 + 1, column - side // 2 : column + side // 2 + 1]
            torch.maximum(spot, tip, out=spot)
    else:
        ink = ((ink - 0.5) * rng.uniform(2, 6) + 0.5).clamp(0, 1)  # MNIST's soft edges -> a pen's
    if thick:
        radius = max(0, round(rng.uniform(*thick) * 100))
        ink = F.max_pool2d(ink, 2 * radius + 1, 1, radius)
        ink = ((F.avg_pool2d(ink, 7, 1, 3) - 0.5) * 3 + 0.5).clamp(0, 1)
    image = Image.frombytes("L", canvas.size, bytes((ink * 255).round().byte().flatten().tolist()))
    image = image.crop(image.point(lambda v: 255 * (v > 60)).getbbox())
    scale = size / max(image.size)
    image = image.resize([max(2, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width) / 255


def draw_others() -> tuple[list[Image.Image], torch.Tensor]:
    """scikit-learn's 1,797 digits, 8×8, enlarged to 200 pixels, dark on white, and their labels."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = [Image.fromarray((255 - digit * 15.9375).clip(0, 255).astype("uint8")) for digit in digits.images]
    enlarged = [image.resize((200, 200), Image.Resampling.LANCZOS) for image in images]
    return [ImageOps.expand(image, 30, "white") for image in enlarged], torch.tensor(digits.target)


def draw(digits, rng, size, margin=(0.15, 1.0), canvas=None, ink=DARK, paper=WHITE, contrast=None, light=0.0, vignette=0.0, shadow=None,
         soft=(0, 1), band=None, lines=0, pitch=(0.3, 1), line=LINES, width=(1, 2), turn=0, sigma=(0, 0), grain=0.0, jpeg=None, alpha=False,
         table=None, box=None, row=1, blank=False, **shape):  # fmt: skip
    """A photographed digit, the first of `digits`, or a row of them, as a PIL image; KINDS describes the options."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    size = rng.randint(*size)
    ink_map = torch.zeros(size, size)
    if not blank:
        maps = [stroke_map(digit, rng, size, **shape) for digit in digits[:row]]
        high = max(len(one) for one in maps)
        gap = round(rng.uniform(0.25, 0.6) * size) if row > 1 else 0
        maps = [F.pad(one, (0, gap, (high - len(one)) // 2, high - len(one) - (high - len(one)) // 2)) for one in maps]
        ink_map = torch.cat(maps, 1)[:, : -gap or None]
    h, w = ink_map.shape
    left, right, top, bottom = (round(rng.uniform(*margin) * size) for _ in range(4))
    if canvas:
        left, top = rng.randint(5, canvas[0] - w - 5), rng.randint(5, canvas[1] - h - 5)
        right, bottom = canvas[0] - w - left, canvas[1] - h - top
    cover = F.pad(ink_map, (left, right, top, bottom))
    height, breadth = cover.shape
    colour, ground = torch.tensor(rng.choice(ink)).float().view(3, 1, 1), torch.tensor(rng.choice(paper)).float().view(3, 1, 1)
    if alpha:
        rgba = torch.cat([colour.expand(3, height, breadth), 255 * cover[None]])
        return Image.frombytes("RGBA", (breadth, height), bytes(rgba.round().byte().permute(1, 2, 0).flatten().tolist()))
    if contrast:
        strength = rng.uniform(*contrast)
        colour = ground * (1 - strength) + torch.tensor(rng.choice([(0.0, 0, 0), (20.0, 20, 25)])).view(3, 1, 1) * strength
    page = ground.expand(3, height, breadth)
    if lines:
        step, thickness, angle = max(5, rng.uniform(*pitch) * size), rng.randint(*width), rng.uniform(-turn, turn)
        big = Image.new("L", (2 * breadth + 2 * height,) * 2)
        pen, offset = ImageDraw.Draw(big), rng.uniform(0, step)
        for k in range(int(big.width / step)):
            pen.line([(0, offset + k * step), (big.width, offset + k * step)], 255, thickness)
            if lines == 2:
                pen.line([(offset + k * step, 0), (offset + k * step, big.width)], 255, thickness)
        if angle:
            big = big.rotate(angle, Image.Resampling.BICUBIC)
        x, y = (big.width - breadth) // 2, (big.width - height) // 2
        big = big.crop((x, y, x + breadth, y + height))
        rule = torch.frombuffer(bytearray(big.tobytes()), dtype=torch.uint8).view(height, breadth) / 255
        page = page * (1 - rule) + torch.tensor(rng.choice(line)).float().view(3, 1, 1) * rule
    if box:
        gap, rule = round(rng.uniform(*box) * size), Image.new("L", (breadth, height))
        corners = (max(0, left - gap), max(0, top - gap), min(breadth, left + w + gap) - 1, min(height, top + h + gap) - 1)
        ImageDraw.Draw(rule).rectangle(corners, None, 255, rng.randint(*width))
        rule = torch.frombuffer(bytearray(rule.tobytes()), dtype=torch.uint8).view(height, breadth) / 255
        page = page * (1 - rule) + torch.tensor(rng.choice(line)).float().view(3, 1, 1) * rule
    if grain:  # chalk and pencil skip over the paper's tooth
        tooth = F.interpolate(torch.rand(1, 1, height // 2 + 1, breadth // 2 + 1, generator=g), (height, breadth), mode="bilinear")[0, 0]
        cover = cover * (1 - grain * tooth)
    page = page * (1 - cover) + colour * cover
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, breadth)[None]
    a = rng.uniform(0, 6.3)
    cos, sin = torch.tensor(a).cos(), torch.tensor(a).sin()
    lamp = 1 - light * rng.uniform(0.3, 1) * (1 + (cos * x + sin * y) / 1.4) / 2 - vignette * rng.uniform(0.3, 1) * (x * x + y * y) / 2
    if shadow:
        a, edge = rng.uniform(0, 6.3), rng.uniform(0, 0.7)
        distance = (torch.tensor(a).cos() * x * breadth + torch.tensor(a).sin() * y * height) / 2 - edge * min(height, breadth) / 2
        if band:  # the shadow of a pen or an arm: two edges
            distance = rng.uniform(*band) * min(height, breadth) / 2 - distance.abs()
        lamp = lamp * (1 - (1 - rng.uniform(*shadow)) * torch.sigmoid(distance / max(0.3, rng.uniform(*soft) / 2)))
    page = page * lamp
    noise = rng.uniform(*sigma)
    shape = (1 if rng.random() < 0.5 else 3, height, breadth)  # grey or coloured noise
    page = (page + noise * torch.randn(shape, generator=g)).clamp(0, 255).round().byte()
    image = Image.frombytes("RGB", (breadth, height), page.permute(1, 2, 0).contiguous().numpy().tobytes())
    if table:
        around, border = rng.choice(TABLES), max(1, round(rng.uniform(*table[:2]) * min(image.size)))
        image = ImageOps.expand(image, border, around).rotate(rng.uniform(-table[2], table[2]), Image.Resampling.BICUBIC, fillcolor=around)
    if jpeg:
        image.save(file := io.BytesIO(), "JPEG", quality=rng.randint(*jpeg))
        image = Image.open(file)
    return image


def measure(model, photos: list[Image.Image], labels, folder: Path | None, name: str) -> str:
    """The cells of a table: accuracy, n, no ink, several, ms an image."""
    kind, readings, spent = name.partition(":")[0], [], 0.0
    for photo in photos:
        photo.save(file := io.BytesIO(), photo.format or "PNG", quality="keep")
        file.seek(0)
        started = time.perf_counter()
        try:
            readings.append(predict.prepare(predict.flatten(Image.open(file))))
        except predict.Error:
            readings.append(None)
        spent += time.perf_counter() - started
    digits = []
    for reading in readings:
        logits = predict.classify(model, torch.from_numpy(reading[0])) if reading else torch.zeros(1, 10)
        digits.append(int(logits.softmax(1).amax(0).argmax()) if reading else -1)
    blank, several = sum(reading is None for reading in readings), sum(bool(r and r[1]) for r in readings)
    wrong = [i for i, (digit, label) in enumerate(zip(digits, labels)) if digit != label]
    right = {"blank": blank, "row": several}.get(kind, len(photos) - len(wrong))
    for i in wrong if folder else []:
        folder.mkdir(exist_ok=True)
        photos[i].save(folder / f"{name.replace(':', '')}-{i}-{labels[i]}-read-{digits[i]}.png")
    cells = f"{100 * right / len(photos):.2f}", len(photos), blank, several, f"{1000 * spent / len(photos):.1f}"
    return " | ".join(map(str, cells))


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=REPO / "data/sample", help="digits to draw")
    parser.add_argument("--split", choices=["train", "test"], default="test", help="of them")
    parser.add_argument("--kinds", default=",".join(KINDS), help="chalk, or chalk:1 for its second variant")
    parser.add_argument("--n", type=int, default=200, help="drawings of each variant")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--weights", default=str(REPO / "data/mnist_cnn.pt"), help="state_dict to read them with")
    parser.add_argument("--save", type=Path, help="folder for the misread ones")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predict.cv2.setNumThreads(1)
    model = predict.load_weights(args.weights)
    images, labels = predict.load(args.data_dir, args.split)
    print("kind | accuracy | n | no ink | several | ms an image\n---|---|---|---|---|---")
    for kind in args.kinds.split(","):
        name, _, only = kind.partition(":")
        for number, options in enumerate(KINDS[name]):
            if only and int(only) != number:
                continue
            if name == "others":
                photos, truth = draw_others()
            else:
                rng = random.Random(f"{args.seed}{name}{number}")
                chosen = rng.sample(range(len(labels)), min(args.n, len(labels)))
                truth = labels[chosen].tolist()
                photos = [draw([images[i], *images[rng.sample(range(len(labels)), 3)]], rng, **options) for i in chosen]
            print(f"{name}:{number} |", measure(model, photos, truth, args.save, f"{name}:{number}"), flush=True)


if __name__ == "__main__":
    main()
