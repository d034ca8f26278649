"""predict.py on a user's own pictures: what is read, how it is said, and what cannot be read."""

import csv
import io
import json
import os

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, SAMPLE, assert_one_error_line, import_script, run, uv_run
from PIL import Image, ImageDraw, ImageOps


@pytest.fixture(scope="module")
def digits(predict):
    return predict.load(SAMPLE, "test")


def photo(image: torch.Tensor, side: int = 200, margin: int = 100) -> Image.Image:
    """A digit as a dark pen would write it on white paper."""
    ink = Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.BICUBIC)
    return ImageOps.expand(ImageOps.invert(ink), margin, 255)


def page(*rows) -> Image.Image:
    """Digits beside each other on white paper."""
    photos = [photo(image, 120, 40) for image in rows]
    whole = Image.new("L", (sum(one.width for one in photos), photos[0].height), 255)
    for number, one in enumerate(photos):
        whole.paste(one, (number * one.width, 0))
    return ImageOps.expand(whole, 60, 255)


def read(predict, trained, *paths, option="--json"):
    """`uv run predict.py --json paths`: the images by file name, the errors by file name, and stderr."""
    result = uv_run("predict.py", option, "--weights", trained.weights, *paths, cwd=trained.folder)
    answer = json.loads(result.stdout)
    assert result.returncode == (1 if answer["errors"] else 0)
    images, errors = ({os.path.basename(entry["file"]): entry for entry in answer[key]} for key in ("images", "errors"))
    return images, {name: entry["error"] for name, entry in errors.items()}, result.stderr


# What is printed


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """Ten of the sample's test images as PNGs in a folder, and in one below it; a blank, a damaged, and other files."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(10):
        Image.fromarray(digits[0][number].numpy()).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    Image.new("RGB", (200, 300), "white").save(folder / "blank.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "scan.pdf").write_text("%PDF")
    return folder


ORDER = ["0.png", "2.png", "4.png", "6.png", "8.png", "1.png", "3.png", "5.png", "7.png", "9.png"]


def test_text(folder, trained):
    """A line for each image, in order; errors do not stop the others; one note for what is passed over."""
    result = uv_run("predict.py", "--weights", trained.weights, folder, "missing.png", cwd=trained.folder)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [os.path.basename(line[0]) for line in lines] == ORDER and result.returncode == 1
    assert all(line[1].isdigit() and line[3] == "%" for line in lines)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [name for line in errors for name in ("blank.png", "damaged.jpg", "missing.png") if name in line] == [
        "blank.png", "damaged.jpg", "missing.png"]  # fmt: skip
    assert "blank.png: no ink found" in result.stderr and "Traceback" not in result.stderr
    assert "note: passed over 2 other files: 1 .svg, 1 .pdf" in result.stderr.replace("1 .pdf, 1 .svg", "1 .svg, 1 .pdf")


def test_json_and_csv_agree(folder, trained, predict, digits):
    images, errors, _ = read(predict, trained, folder)
    rows = list(csv.DictReader(io.StringIO(uv_run("predict.py", "--csv", "--weights", trained.weights, folder, cwd=trained.folder).stdout)))
    assert list(images) == ORDER == [os.path.basename(row["file"]) for row in rows] and set(errors) == {"blank.png", "damaged.jpg"}
    model = predict.load_weights(str(trained.weights))
    expected = predict.classify(model, digits[0][:10]).softmax(1)
    for entry, row in zip(images.values(), rows):
        probabilities = expected[int(os.path.basename(entry["file"])[0])].tolist()
        assert entry["probabilities"] == pytest.approx(probabilities, abs=1e-5) and entry["several"] is False
        assert entry["probability"] == max(entry["probabilities"]) == entry["probabilities"][entry["digit"]]
        assert int(row["digit"]) == entry["digit"] and float(row["probability"]) == pytest.approx(entry["probability"], abs=1e-6)
        assert [float(row[str(digit)]) for digit in range(10)] == pytest.approx(entry["probabilities"], abs=1e-6)


def test_stdin_in_a_folder_with_nothing_in_it(folder, trained, tmp_path):
    with open(folder / "4.png", "rb") as file:
        piped = uv_run("predict.py", "-", "--weights", trained.weights, cwd=tmp_path, stdin=file)
    named = uv_run("predict.py", folder / "4.png", "--weights", trained.weights, cwd=tmp_path)
    assert piped.returncode == named.returncode == 0 and piped.stdout.split()[1:] == named.stdout.split()[1:]
    assert not list(tmp_path.iterdir())


def test_folder_without_images(trained, tmp_path):
    assert_one_error_line(uv_run("predict.py", "--weights", trained.weights, tmp_path, cwd=trained.folder), "no images in", str(tmp_path))


def test_plot(folder, trained, tmp_path):
    command = ["uv", "run", "--with", "matplotlib==3.11.2", REPO / "predict.py", "--weights", trained.weights]
    result = run(*command, "--plots", "plots", folder, cwd=tmp_path)
    assert result.returncode == 1 and (tmp_path / "plots/predictions.png").read_bytes().startswith(b"\x89PNG"), result.stderr


def test_report(trained):
    result = uv_run("predict.py", "--report", "--data-dir", "data/sample", "--weights", trained.weights, cwd=trained.folder)
    rows = [line.split() for line in result.stdout.splitlines()[-11:-1]]
    assert [row[0] for row in rows] == list("0123456789") and all(sum(map(int, row[3:])) == 100 for row in rows)
    assert all(float(row[1]) == int(row[3 + digit]) for digit, row in enumerate(rows))


# What people meet with their own pictures


@pytest.fixture(scope="module")
def album(digits, tmp_path_factory):
    """The first 8 of the sample's test images as what cameras and programs make of them, by the name of the kind."""
    import pillow_heif

    folder = tmp_path_factory.mktemp("album")
    for number in range(8):
        plain = photo(digits[0][number])
        colour = plain.convert("RGB")
        kinds = {
            "plain.png": plain, "grey.jpg": plain, "inverted.png": ImageOps.invert(plain), "cmyk.jpg": colour.convert("CMYK"),
            "palette.gif": colour.convert("P"), "16bit.png": Image.fromarray(np.asarray(plain).astype(np.uint16) * 200),
            "float.tiff": Image.fromarray(np.log(np.asarray(plain, np.float32)).clip(3)),
            "animated.webp": colour, "huge.png": plain.resize((12000, 9000)) if number == 0 else plain,
        }  # fmt: skip
        for name, image in kinds.items():
            image.save(folder / f"{number}-{name}")
        rotated = Image.Exif()
        rotated[0x0112] = 6
        plain.rotate(90, expand=True).save(folder / f"{number}-turned.jpg", exif=rotated)
        transparent = Image.new("RGBA", plain.size)
        transparent.putalpha(ImageOps.invert(plain))
        transparent.save(folder / f"{number}-transparent.png")
        pillow_heif.from_pillow(colour).save(folder / f"{number}-iphone.heic")
    return folder


def test_formats(album, digits, predict, trained):
    """Every form of a digit is read as its plain one is; 108 megapixels are no bomb, HEIC is known."""
    images, errors, stderr = read(predict, trained, album)
    assert not errors and "several" not in stderr
    wrong = [name for name, entry in images.items() if entry["digit"] != int(digits[1][int(name[0])])]
    assert len(images) == 12 * 8 and len(wrong) <= 3, wrong


def test_bomb(trained, tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    result = uv_run("predict.py", "--weights", trained.weights, "bomb.png", cwd=tmp_path)
    assert_one_error_line(result, "bomb.png", "400000000 pixels")


def test_several_digits_are_noticed(digits, predict, trained, tmp_path):
    for number in range(10):
        page(*digits[0][number : number + 2 + number % 3]).save(tmp_path / f"row{number}.png")
        page(digits[0][number]).save(tmp_path / f"one{number}.png")
    images, _, stderr = read(predict, trained, tmp_path)
    several = {name for name, entry in images.items() if entry["several"]}
    assert len([name for name in several if "row" in name]) >= 9 and not [name for name in several if "one" in name]
    assert stderr.count("more than one digit? cut it up") == len(several)


def draw_eight(width: int) -> Image.Image:
    image = Image.new("L", (300, 400), 255)
    pen = ImageDraw.Draw(image)
    pen.ellipse((100, 60, 200, 180), outline=0, width=width)
    pen.ellipse((85, 180, 215, 340), outline=0, width=width)
    return image


def test_the_hole_of_an_8_is_not_the_digit_and_hairlines_stay(predict):
    """The 28×28 has the whole height of the digit, and both of its holes; a thick-and-thin 0 keeps its thin sides."""
    zero = Image.new("L", (300, 400), 255)
    ImageDraw.Draw(zero).ellipse((80, 60, 220, 340), fill=0)
    ImageDraw.Draw(zero).ellipse((85, 90, 215, 310), fill=255)  # 5 pixels of ink at the sides, 30 at the ends
    for image, holes in ((draw_eight(6), 2), (draw_eight(24), 2), (zero, 1)):
        candidates, several = predict.prepare(predict.flatten(image))
        pixels = candidates[0]
        background, _ = cv2.connectedComponents((np.pad(pixels, 1) < 100).astype(np.uint8), connectivity=4)
        assert not several and background == 2 + holes and (pixels.max(1) > 0).sum() == 20


# Odd inputs: a digit or one line, never OpenCV's own error

ODD = {
    "1x1": Image.new("L", (1, 1)), "1x2000": Image.new("RGB", (1, 2000), "red"), "3x3": Image.effect_noise((3, 3), 90),
    "white": Image.new("L", (300, 300), 255), "black": Image.new("RGB", (300, 300)), "28x28 black": Image.new("L", (28, 28)),
    "nan": Image.fromarray(np.full((50, 50), np.nan, np.float32)), "nothing": Image.new("RGBA", (90, 90)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_inputs(name, predict):
    try:
        candidates, _ = predict.prepare(predict.flatten(ODD[name]))
        assert candidates.shape[1:] == (28, 28) and candidates.dtype == np.uint8
    except predict.Error as error:
        assert str(error) == "no ink found"


def test_28x28_light_on_black_stays_as_it_is(digits, predict):
    for image in digits[0][:100]:
        candidates, several = predict.prepare(predict.flatten(Image.fromarray(image.numpy())))
        assert len(candidates) == 1 and not several and (candidates[0] == image.numpy()).all()


def test_drawn_photographs(predict, trained):
    """A few of each kind that tests/handwriting.py draws: far from the figures in README.md, this finds what breaks a kind."""
    handwriting = import_script("tests/handwriting")
    model = predict.load_weights(str(trained.weights))
    images, labels = predict.load(SAMPLE, "test")
    rng, low = handwriting.random.Random(1), {}
    for kind, variants in handwriting.KINDS.items():
        if kind in ("others", "small"):  # which take long to draw
            continue
        chosen = [rng.sample(range(len(labels)), 4) for _ in range(12)]
        photos = [handwriting.draw(images[four], rng, **variants[0]) for four in chosen]
        cells = handwriting.measure(model, photos, [int(labels[four[0]]) for four in chosen], None, f"{kind}:0")
        if float(cells.split()[0]) < 80:
            low[kind] = cells
    assert not low
