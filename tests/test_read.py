"""predict.py on a user's own pictures: what is read, how it is said, and what cannot be read."""

import csv
import io
import json
import os

import cv2
import numpy as np
import pillow_heif
import pytest
from conftest import REPO, SAMPLE, assert_one_error_line, digit, import_script, run, uv_run
from PIL import Image, ImageDraw, ImageOps

LABELS = (SAMPLE / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:]


def photo(number: int, side: int = 200, margin: int = 100) -> Image.Image:
    """One of the sample's test images as a dark pen would write it on white paper."""
    ink = digit(number).resize((side, side), Image.Resampling.BICUBIC)
    return ImageOps.expand(ImageOps.invert(ink), margin, 255)


def page(*numbers: int) -> Image.Image:
    """Digits beside each other on white paper."""
    row = np.hstack([photo(number, 120, 40) for number in numbers])
    return ImageOps.expand(Image.fromarray(row), 60, 255)


def read(trained, *paths):
    """`uv run predict.py --json paths`: the images and the errors by file name, and stderr."""
    result = uv_run("predict.py", "--json", "--weights", trained.weights, *paths, cwd=trained.folder)
    answer = json.loads(result.stdout)
    assert result.returncode == (1 if answer["errors"] else 0)
    images = {os.path.basename(entry["file"]): entry for entry in answer["images"]}
    errors = {os.path.basename(entry["file"]): entry["error"] for entry in answer["errors"]}
    return images, errors, result.stderr


NAMES = [f"{number}.png" for number in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]  # in order of the folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten digits in a folder and in one below it; a blank page, a damaged file, a bomb, and other files."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(10):
        digit(number).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    Image.new("RGB", (200, 300), "white").save(folder / "blank.png")
    (folder / "bomb.pbm").write_bytes(b"P4 20000 20000 ")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "scan.pdf").write_text("%PDF")
    (folder / "scan.svg").write_text("<svg/>")
    return folder


def test_text_and_plot(folder, trained, tmp_path):
    """A line for each image, in order; errors do not stop the others; one note for what is passed over."""
    command = ["uv", "run", "--with", "matplotlib==3.11.2", REPO / "predict.py", "--weights", trained.weights]
    result = run(*command, "--plots", "plots", folder, "missing.png", cwd=tmp_path)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [os.path.basename(line[0]) for line in lines] == NAMES and result.returncode == 1
    assert all(line[1].isdigit() and line[3] == "%" for line in lines)
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    words = ["blank.png: no ink found", "bomb.pbm: ", "damaged.jpg: not an image", "missing.png: "]
    assert len(errors) == 4 and all(word in line for word, line in zip(words, errors)), result.stderr
    note = "note: passed over 2 other files: .pdf .svg"
    assert note in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "plots/predictions.png").read_bytes().startswith(b"\x89PNG")


def test_json_and_csv(folder, trained, predict):
    """Both say what the network says of the 28×28 images as they are."""
    images, errors, _ = read(trained, folder)
    text = uv_run("predict.py", "--csv", "--weights", trained.weights, folder, cwd=trained.folder).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(images) == NAMES == [os.path.basename(row["file"]) for row in rows]
    assert list(errors) == ["blank.png", "bomb.pbm", "damaged.jpg"]
    assert "400000000 pixels" in errors["bomb.pbm"]
    model = predict.load_weights(str(trained.weights))
    expected = predict.classify(model, predict.load(SAMPLE, "test")[0][:10]).softmax(1)
    for (name, entry), row in zip(images.items(), rows):
        probabilities = pytest.approx(expected[int(name[0])].tolist(), abs=1e-5)
        assert entry["probabilities"] == probabilities and entry["several"] is False
        assert entry["probability"] == max(entry["probabilities"]) == entry["probabilities"][entry["digit"]]
        assert [float(row[str(number)]) for number in range(10)] == probabilities
        assert int(row["digit"]) == entry["digit"] and row["probability"] == f"{entry['probability']:.6f}"


def test_stdin_and_nothing_to_read(folder, trained, tmp_path):
    """Writes nothing, in a folder with nothing in it."""
    command = ["predict.py", "--weights", trained.weights]
    with open(folder / "4.png", "rb") as file:
        piped = uv_run(*command, "-", cwd=tmp_path, stdin=file)
    named = uv_run(*command, folder / "4.png", cwd=tmp_path)
    assert piped.returncode == named.returncode == 0 and piped.stdout.split()[1:] == named.stdout.split()[1:]
    assert_one_error_line(uv_run(*command, tmp_path, cwd=tmp_path), "no images in", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_memory_holds_a_hundred_images(folder, trained, predict):
    taken = []
    paths = (taken.append(number) or str(folder / "4.png") for number in range(250))
    results = predict.read_images(predict.load_weights(str(trained.weights)), paths)
    assert next(results)[0] == str(folder / "4.png") and len(taken) == 100
    assert len(list(results)) == 249


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Eight digits as what cameras and programs make of them, by the name of the kind."""
    folder = tmp_path_factory.mktemp("album")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for number in range(8):
        plain = photo(number)
        colour = plain.convert("RGB")
        grey = np.asarray(plain)
        transparent = Image.new("RGBA", plain.size)
        transparent.putalpha(ImageOps.invert(plain))
        kinds = {
            "plain.png": plain, "grey.jpg": plain, "inverted.png": ImageOps.invert(plain),
            "cmyk.jpg": colour.convert("CMYK"), "palette.gif": colour.convert("P"), "animated.webp": colour,
            "16bit.png": Image.fromarray(grey.astype(np.uint16) * 200), "transparent.png": transparent,
            "float.tiff": Image.fromarray(np.log1p(grey.astype(np.float32)).clip(3)),
            "iphone.heic": pillow_heif.from_pillow(colour),
            "red-on-blue.png": ImageOps.colorize(plain, (200, 60, 50), (60, 110, 200)),  # the same grey
        }  # fmt: skip
        for name, image in kinds.items():
            image.save(folder / f"{number}-{name}")
        plain.rotate(90, expand=True).save(folder / f"{number}-turned.jpg", exif=rotated)
    photo(0).resize((12000, 9000)).save(folder / "0-huge.png")
    return folder


def test_formats(album, trained):
    """Every form of a digit is read as its plain one is; 108 megapixels are no bomb, HEIC is known."""
    images, errors, stderr = read(trained, album)
    assert not errors and "several" not in stderr
    wrong = [name for name, entry in images.items() if entry["digit"] != LABELS[int(name[0])]]
    assert len(images) == 12 * 8 + 1 and len(wrong) <= 3, wrong


def test_a_close_neighbour_is_no_part_of_the_digit(predict):
    alone = 0
    for number in range(10):
        pair = np.hstack([ImageOps.crop(photo(n, 120, 0), 12) for n in (number, (number + 3) % 10)])
        candidates, _ = predict.prepare(predict.decode(ImageOps.expand(Image.fromarray(pair), 90, 255)))
        alone += cv2.connectedComponents((candidates[0] > 100).astype(np.uint8))[0] == 2  # paper and a digit
    assert alone >= 9


def test_probabilities_are_the_mean_of_the_candidates(album, trained, predict):
    model, path = predict.load_weights(str(trained.weights)), str(album / "5-plain.png")
    candidates, _, _ = predict.read_image(path)
    _, _, _, probabilities, _ = next(predict.read_images(model, iter([path])))
    expected = predict.classify(model, predict.torch.from_numpy(candidates)).softmax(1)
    assert len(candidates) == 2 and not predict.torch.equal(expected[0], expected[1])
    assert probabilities.tolist() == pytest.approx(expected.mean(0).tolist(), abs=1e-5)


def test_several_digits_are_noticed(trained, tmp_path):
    for number in range(10):
        page(*range(number, number + 2 + number % 3)).save(tmp_path / f"row{number}.png")
        page(number).save(tmp_path / f"one{number}.png")
    images, _, stderr = read(trained, tmp_path)
    several = {name for name, entry in images.items() if entry["several"]}
    assert len(several) >= 9 and all("row" in name for name in several)
    assert stderr.count("more than one digit? cut it up") == len(several)


def test_the_hole_of_an_8_is_not_the_digit_and_hairlines_stay(predict):
    """The 28×28 has the whole height of the digit, and its holes; a thick-and-thin 0 keeps its thin sides."""
    thin, thick, zero = (Image.new("L", (300, 400), 255) for _ in range(3))
    for image, width in ((thin, 6), (thick, 24)):
        ImageDraw.Draw(image).ellipse((100, 60, 200, 180), outline=0, width=width)
        ImageDraw.Draw(image).ellipse((85, 180, 215, 340), outline=0, width=width)
    ImageDraw.Draw(zero).ellipse((80, 60, 220, 340), fill=0)
    ImageDraw.Draw(zero).ellipse((85, 90, 215, 310), fill=255)  # 5 pixels of ink at the sides, 30 at the ends
    for image, holes in ((thin, 2), (thick, 2), (zero, 1)):
        candidates, several = predict.prepare(predict.decode(image))
        pixels = candidates[0]
        background, _ = cv2.connectedComponents((np.pad(pixels, 1) < 100).astype(np.uint8), connectivity=4)
        assert not several and background == 2 + holes and (pixels.max(1) > 0).sum() == 20


def test_drawn_photographs(predict, trained):
    """A few of each kind that handwriting.py draws: too few for a figure, enough to see a kind break."""
    handwriting = import_script("tests/handwriting")
    model = predict.load_weights(str(trained.weights))
    images, labels = predict.load(SAMPLE, "test")
    rng, correct = handwriting.random.Random(1), {}
    for kind, variants in handwriting.KINDS.items():
        if kind in ("others", "small"):  # which take long to draw
            continue
        chosen = [rng.sample(range(len(labels)), 4) for _ in range(12)]
        photos = [handwriting.draw(images[four], rng, **variants[0]) for four in chosen]
        cells = handwriting.measure(model, photos, [int(labels[four[0]]) for four in chosen], kind)
        correct[kind] = float(cells.split()[0])
    assert min(correct.values()) >= 80, correct
