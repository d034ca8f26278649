"""read.py on a user's own pictures: what it reads, how it says so, what it refuses."""

import csv
import gc
import io
import json
import os
import warnings

import cv2
import numpy as np
import pillow_heif
import pytest
from conftest import (
    ENV,
    REPO,
    SAMPLE,
    assert_one_error_line,
    digit,
    import_script,
    run,
    uv_run,
)
from PIL import Image, ImageDraw, ImageFont, ImageOps

LABELS = (SAMPLE / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:]


# %% Drawing
def typical(label: int) -> int:
    """The test image of a digit that is nearest to their mean."""
    numbers = [n for n in range(1000) if LABELS[n] == label]
    images = np.array([np.asarray(digit(n), float) for n in numbers])
    return numbers[((images - images.mean(0)) ** 2).sum((1, 2)).argmin()]


CLEAR = [typical(label) for label in range(10)]


def pen(number: int, side: int = 200) -> Image.Image:
    """A test image of the sample, cropped to its ink, dark on white."""
    image = digit(number)
    image = image.crop(image.getbbox())
    size = [round(length * side / max(image.size)) for length in image.size]
    return ImageOps.invert(image.resize(size, Image.Resampling.BICUBIC))


def photo(number: int, side: int = 200, margin: int = 100) -> Image.Image:
    return ImageOps.expand(pen(number, side), margin, 255)


def write(page: Image.Image, text: str, x: int, y: int, side: int, **how) -> None:
    """Write digits in a row whose middle begins at (x, y); `how`: fall, gap, ink."""
    for character in text:
        ink = pen(CLEAR[int(character)], side)
        at = (x, round(y - ink.height / 2))
        page.paste(how.get("ink", 0), at, ImageOps.invert(ink))
        step = ink.width + how.get("gap", side // 3)
        x, y = x + step, y + step * how.get("fall", 0)


def page(*lines: str, side: int = 90, **how) -> Image.Image:
    """Lines of digits on white paper."""
    sheet = Image.new("L", (900, 200 + 200 * len(lines)), 255)
    for number, text in enumerate(lines):
        write(sheet, text, 120, 180 + 200 * number, side, **how)
    return sheet


def dim(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 0.35 * value)


def frame(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, 30, 40)


def dark_corners() -> Image.Image:
    pixels = np.asarray(page("480", "216"), np.float32)
    y, x = np.mgrid[-1 : 1 : pixels.shape[0] * 1j, -1 : 1 : pixels.shape[1] * 1j]
    return Image.fromarray((pixels * (1 - 0.4 * (x * x + y * y))).astype(np.uint8))


def dark_object() -> Image.Image:
    sheet = page("3852", "")
    ImageDraw.Draw(sheet).rounded_rectangle((250, 480, 900, 700), 40, 30)
    return sheet


def squared() -> Image.Image:
    sheet = Image.new("L", (900, 500), 235)
    pencil = ImageDraw.Draw(sheet)
    for at in range(20, 900, 60):
        pencil.line((at, 0, at, 500), 190, 3)
        pencil.line((0, at, 900, at), 190, 3)
    write(sheet, "5230", 120, 180, 110, ink=40)
    write(sheet, "648", 120, 360, 110, ink=40)
    return sheet


def two_columns() -> Image.Image:
    sheet = page("123", "786")
    write(sheet, "40", 650, 180, 90)
    write(sheet, "52", 650, 380, 90)
    return sheet


def halo() -> Image.Image:
    """A light 8 with a dark halo, whose holes are darker than all else."""
    strokes = ImageOps.invert(photo(CLEAR[8]))
    around = cv2.GaussianBlur(np.asarray(strokes), (0, 0), 15)
    pixels = 150 - 0.5 * around
    pixels += (245 - pixels) * np.asarray(strokes) / 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def polyline(*strokes, width: int = 14) -> Image.Image:
    image = Image.new("L", (400, 400), 255)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, 0, width, "curve")
    return image


def five() -> Image.Image:
    """A 5 whose flag does not touch its body."""
    body = [(165, 125), (158, 190), (200, 178), (240, 200), (250, 245), (220, 290)]
    return polyline([*body, (170, 295), (145, 275)], [(190, 108), (262, 104)])


def one_with_a_foot() -> Image.Image:
    return polyline([(165, 150), (205, 100), (205, 290)], [(150, 292), (262, 292)])


def stretched() -> Image.Image:
    """A 4 that fills 28×28: not laid out like MNIST."""
    image = digit(CLEAR[4])
    return image.crop(image.getbbox()).resize((28, 28), Image.Resampling.BICUBIC)


# What a picture shows, and the lines to read.
PICTURES = {
    "one digit": (photo(CLEAR[7]), ["7"]),
    "a row": (page("2480"), ["2480"]),
    "lines, top to bottom": (page("12345", "67890"), ["12345", "67890"]),
    "a sloping row": (page("4826", side=100, fall=0.45), ["4826"]),
    "two columns": (two_columns(), ["12340", "78652"]),
    "dim": (dim(page("360")), ["360"]),
    "dim, with a frame": (dim(frame(page("360"))), ["360"]),
    "light on dark": (ImageOps.invert(page("94")), ["94"]),
    "a dark halo": (halo(), ["8"]),
    "dark corners": (dark_corners(), ["480", "216"]),
    "a dark object at the edge": (dark_object(), ["3852"]),
    "squared paper": (squared(), ["5230", "648"]),
    "a 5's flag apart": (five(), ["5"]),
    "a 1 with a foot": (one_with_a_foot(), ["1"]),
    "a stretched crop": (stretched(), ["4"]),
}


@pytest.fixture(scope="module")
def model(read, trained):
    return read.load_weights(str(trained.weights))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, read, model):
    image, lines = PICTURES[name]
    assert read.read_picture(model, image)["lines"] == lines


# %% What is refused
def noise(deviation: float) -> Image.Image:
    grain = np.random.default_rng(1).normal(200, deviation, (300, 400))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((400, 300)).point(lambda v: 120 + v // 2)


REFUSED = {
    "white": (Image.new("RGB", (200, 300), "white"), "no ink found"),
    "grain": (noise(4), "no ink found"),
    "coarse grain": (noise(25), "no ink found"),
    "uneven light": (gradient(), "no ink found"),
    "one pixel": (Image.new("L", (1, 1)), "no ink found"),
    "a row of pixels": (Image.new("L", (900, 1), 200), "no ink found"),
    "a flat array": (np.zeros(9), "shape (9,) is not"),
    "five channels": (np.zeros((9, 9, 5)), "shape (9, 9, 5) is not"),
    "no pixels": (np.zeros((0, 9)), "shape (0, 9) is not"),
    "a missing file": ("missing.png", "No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, read, model):
    picture, words = REFUSED[name]
    with pytest.raises(read.Error, match=words.replace("(", r"\(").replace(")", r"\)")):
        read.read_picture(model, picture)


# %% From Python
def test_read_picture_takes_paths_images_and_arrays(read, model, tmp_path):
    image = page("27")
    image.save(tmp_path / "27.png")
    grey, colour = np.asarray(image), np.asarray(image.convert("RGB"))
    for picture in (
        tmp_path / "27.png",
        str(tmp_path / "27.png"),
        image.convert("RGB"),
        grey,
        colour,
        np.asarray(image.convert("RGBA")),
        grey > 127,
        grey / 255,
        grey.astype(np.float32),
        grey.astype(np.uint16) * 257,
        grey.astype(np.int64),
    ):
        answer = read.read_picture(model, picture)
        assert answer["lines"] == ["27"]
        assert answer["file"] == (str(picture) if "27.png" in str(picture) else "")


def test_boxes_lie_on_the_digits_of_the_upright_picture(read, model, tmp_path):
    """Also of a large picture with an orientation, which is read scaled and turned."""
    sheet = page("30", side=120).resize((3600, 1600))
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / "turned.jpg"
    sheet.rotate(90, expand=True).save(path, exif=turned)
    dark = np.asarray(sheet) < 128
    for entry in read.read_picture(model, path)["digits"]:
        x, y, w, h = entry["box"]
        found = dark[y : y + h, x : x + w]
        columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
        assert np.ptp(columns) > 0.85 * w and np.ptp(rows) > 0.85 * h
        dark[y - 12 : y + h + 12, x - 12 : x + w + 12] = False
    assert not dark.any()


def test_importing_changes_no_setting(read):
    threads = cv2.getNumThreads()
    filters, formats = list(warnings.filters), dict(Image.EXTENSION)
    gc.disable()
    import_script("read")
    assert not gc.isenabled()
    gc.enable()
    import_script("read")
    assert gc.isenabled() and gc.get_freeze_count() == 0
    assert cv2.getNumThreads() == threads
    assert warnings.filters == filters and formats == Image.EXTENSION


def test_mnist_passes_as_it_is_and_stretched_crops_do_not(read):
    for number in range(1000):
        pixels = np.asarray(digit(number).convert("RGB"))
        digits = read.find_digits(pixels)
        assert np.array_equal(digits.images[0], pixels[..., 0])
        assert digits.lines == [0]
    found = read.find_digits(np.asarray(stretched().convert("RGB"))).images[0]
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) == 19


def test_strokes_keep_their_holes_and_hairlines(read):
    """The 28×28 has the whole height of the digit; a 0 keeps its thin sides."""
    thin, thick, zero = (Image.new("L", (300, 400), 255) for _ in range(3))
    for image, width in ((thin, 6), (thick, 24)):
        draw = ImageDraw.Draw(image)
        draw.ellipse((100, 60, 200, 180), outline=0, width=width)
        draw.ellipse((85, 180, 215, 340), outline=0, width=width)
    draw = ImageDraw.Draw(zero)
    draw.ellipse((80, 60, 220, 340), fill=0)
    draw.ellipse((86, 90, 214, 310), fill=255)  # 6 pixels of ink aside, 30 above
    for image, holes in ((thin, 2), (thick, 2), (zero, 1)):
        [pixels] = read.find_digits(np.asarray(image.convert("RGB"))).images
        paper = (np.pad(pixels, 1) < 100).astype(np.uint8)
        count, _ = cv2.connectedComponents(paper, connectivity=4)
        assert count == 2 + holes
        assert (pixels.max(1) > 0).sum() == 20


# %% As users run it
NAMES = [f"{n}.png" for n in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]  # in order of folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten digits in a folder and one below it, faulty files, and others."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(10):
        parent = folder / "more" if number % 2 else folder
        digit(number).save(parent / f"{number}.png")
    Image.new("RGB", (200, 300), "white").save(folder / "blank.png")
    (folder / "bomb.pbm").write_bytes(b"P4 20000 20000 ")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "scan.pdf").write_text("%PDF")
    (folder / "scan.svg").write_text("<svg/>")
    return folder


def run_read(trained, *arguments, **options):
    weights = "--weights", trained.weights
    return uv_run("read.py", *weights, *arguments, cwd=trained.folder, **options)


def read_json(trained, *paths):
    """`uv run read.py --json`: the pictures and errors by file name, and stderr."""
    result = run_read(trained, "--json", *paths)
    answer = json.loads(result.stdout)
    assert result.returncode == (1 if answer["errors"] else 0), result.stderr
    images = {os.path.basename(entry["file"]): entry for entry in answer["images"]}
    errors = {os.path.basename(x["file"]): x["error"] for x in answer["errors"]}
    return images, errors, result.stderr


def test_text(folder, trained):
    """A line for each picture, in order; errors do not stop the others."""
    result = run_read(trained, folder, "missing.png")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [os.path.basename(line[0]) for line in lines] == NAMES
    assert all(line[1].isdigit() and line[3] == "%" for line in lines)
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert result.returncode == 1 and len(errors) == 4
    assert "blank.png: no ink found" in errors[0]
    assert "bomb.pbm: " in errors[1] and "400000000 pixels" in errors[1]
    assert "damaged.jpg: not an image" in errors[2]
    assert "missing.png: No such file" in errors[3]
    assert "note: passed over 2 other files: .pdf .svg" in result.stderr
    assert "Traceback" not in result.stderr


def test_lines_of_text_doubt_and_csv(trained, tmp_path):
    page("480", "216").save(tmp_path / "page.png")
    blot = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(blot).text((60, 40), "w", 0, ImageFont.load_default(200))
    blot.save(tmp_path / "w.png")
    paths = tmp_path / "page.png", tmp_path / "w.png"
    lines = run_read(trained, *paths).stdout.splitlines()
    assert lines[0].split()[:2] == [str(paths[0]), "480"]
    assert lines[1].startswith(" ") and lines[1].split()[0] == "216"
    assert "unsure" not in lines[0] + lines[1]
    images, _, _ = read_json(trained, *paths)
    doubtful = images["w.png"]["digits"][0]["probability"] < 0.6
    assert images["w.png"]["unsure"] == doubtful == ("unsure" in lines[2])
    rows = list(csv.reader(io.StringIO(run_read(trained, "--csv", *paths).stdout)))
    assert rows[0] == ["file", "line", "number", "probability"]
    assert [row[:3] for row in rows[1:3]] == [
        [str(paths[0]), "1", "480"],
        [str(paths[0]), "2", "216"],
    ]
    product = float(rows[1][3]) * float(rows[2][3])
    assert images["page.png"]["probability"] == pytest.approx(product, abs=1e-5)


def test_json(folder, trained, read, model, predict):
    """It says what the network says of the 28×28 pictures as they are."""
    images, errors, _ = read_json(trained, folder)
    assert list(images) == NAMES
    assert list(errors) == ["blank.png", "bomb.pbm", "damaged.jpg"]
    digits = predict.load(SAMPLE, "test")[0][:10]
    expected = read.classify(model, digits).softmax(1).tolist()
    for name, entry in images.items():
        [one] = entry["digits"]
        best = one["digit"]
        assert entry["lines"] == [str(best)] and one["line"] == 0
        assert one["probabilities"] == pytest.approx(expected[int(name[0])], abs=1e-5)
        assert one["probability"] == max(one["probabilities"])
        assert one["probability"] == one["probabilities"][best]
        assert entry["probability"] == pytest.approx(one["probability"])
        assert one["unsure"] == entry["unsure"] == (one["probability"] < 0.6)
        assert one["box"] == [0, 0, 28, 28]


def test_stdin_and_nothing_to_read(folder, trained, tmp_path):
    """Writes nothing, in a folder with nothing in it."""
    command = ["read.py", "--weights", trained.weights]
    with open(folder / "4.png", "rb") as file:
        piped = uv_run(*command, "-", cwd=tmp_path, stdin=file)
    named = uv_run(*command, folder / "4.png", cwd=tmp_path)
    assert piped.returncode == named.returncode == 0
    assert piped.stdout.split()[1:] == named.stdout.split()[1:]
    nothing = uv_run(*command, tmp_path, cwd=tmp_path)
    assert_one_error_line(nothing, "no images in", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_names_that_the_output_cannot_encode(trained, tmp_path):
    """As on Windows, where output into a file has its letters alone."""
    photo(CLEAR[7]).save(tmp_path / "ā 七.png")
    env = ENV | {"PYTHONIOENCODING": "cp1252"}
    words = ["--weights", trained.weights, "ā 七.png"]
    result = uv_run("read.py", *words, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:3] == ["\\u0101", "\\u4e03.png", "7"]


def test_plots(trained, tmp_path):
    page("480", "216").save(tmp_path / "page.png")
    matplotlib = "--with", "matplotlib==3.11.2"
    command = "uv", "run", *matplotlib, REPO / "read.py", "--weights", trained.weights
    result = run(*command, "--plots", "plots", "page.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "plots/readings.png") as plot:
        blue = np.asarray(plot.convert("RGB")).astype(int) @ [-1, -1, 2] > 300
    assert blue.sum() > 500  # six boxes


def test_memory_holds_a_hundred_pictures(folder, read, model):
    taken = []
    files = (taken.append(number) or str(folder / "4.png") for number in range(250))
    results = read.read_all(model, files)
    assert next(results)[0]["lines"] == [str(LABELS[4])] and len(taken) == 100
    assert len(list(results)) == 249


FORMATS = {
    "grey.png": lambda plain: plain,
    "grey.jpg": lambda plain: plain,
    "inverted.png": ImageOps.invert,
    "cmyk.jpg": lambda plain: plain.convert("CMYK"),
    "palette.gif": lambda plain: plain.convert("P"),
    "animated.webp": lambda plain: plain.convert("RGB"),
    "16bit.png": lambda plain: Image.fromarray(np.uint16(plain) * 200),
    "float.tiff": lambda plain: Image.fromarray(np.log1p(np.float32(plain)).clip(3)),
    "iphone.heic": lambda plain: pillow_heif.from_pillow(plain.convert("RGB")),
    # The same brightness:
    "colour.png": lambda plain: ImageOps.colorize(plain, (200, 60, 50), (60, 110, 200)),
}


def test_formats(trained, tmp_path):
    """Every form of a digit is read as it is; 108 megapixels are no bomb."""
    for number in range(8):
        plain = photo(CLEAR[number])
        for name, convert in FORMATS.items():
            convert(plain).save(tmp_path / f"{number}-{name}")
        for ink in ("black", "white"):
            layer = Image.new("RGBA", plain.size, ink)
            layer.putalpha(ImageOps.invert(plain))
            layer.save(tmp_path / f"{number}-{ink}-on-nothing.png")
    plain.resize((12000, 9000)).save(tmp_path / "7-huge.png")
    images, errors, _ = read_json(trained, tmp_path)
    wrong = [name for name, entry in images.items() if entry["lines"] != [name[0]]]
    assert not errors and not wrong
    assert len(images) == 8 * (len(FORMATS) + 2) + 1


# %% Own pictures for train.py
def test_to_mnist(trained, predict, tmp_path):
    """Folders 0 to 9 become MNIST's files, which predict.py and train.py read."""
    for label in (3, 4):
        (tmp_path / f"labelled/{label}").mkdir(parents=True)
        same = [n for n in range(300) if LABELS[n] == label][:7]
        for number, image in enumerate(same):
            path = tmp_path / f"labelled/{label}/{number}.png"
            digit(image).save(path)
    page("34").save(tmp_path / "labelled/4/several.png")
    (tmp_path / "labelled/4/damaged.jpg").write_bytes(b"no image")
    result = run_read(trained, "--to-mnist", tmp_path / "own", tmp_path / "labelled")
    assert result.returncode == 0 and not result.stdout
    notes = [line for line in result.stderr.splitlines() if "note: " in line]
    assert len(notes) == 2
    assert "damaged.jpg: not an image" in notes[0]
    assert "several.png: 2 digits" in notes[1]
    pixels, labels = predict.load(tmp_path / "own", "train")
    assert labels.tolist() == [3] * 6 + [4] * 6
    pixels, labels = predict.load(tmp_path / "own", "test")
    assert labels.tolist() == [3, 4]  # the fifth of each
    fifth = [n for n in range(300) if LABELS[n] == 3][4]
    assert np.array_equal(pixels[0], np.asarray(digit(fifth)))


def test_to_mnist_refuses(trained, tmp_path):
    (tmp_path / "labelled/3").mkdir(parents=True)
    photo(CLEAR[3]).save(tmp_path / "labelled/3/a.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    labelled = tmp_path / "labelled"
    result = run_read(trained, "--to-mnist", tmp_path / "full", labelled)
    assert_one_error_line(result, "full exists and is not empty")
    (labelled / "three").mkdir()
    result = run_read(trained, "--to-mnist", tmp_path / "own", labelled)
    assert_one_error_line(result, "three: pictures must lie in folders named 0 to 9")
    result = run_read(trained, "--to-mnist", tmp_path / "own", tmp_path / "full")
    assert_one_error_line(result, "no picture of one digit")
    assert not (tmp_path / "own").exists()


# %% Drawn photographs
def test_drawn_photographs(read, model, predict):
    """A few of each kind: too few for a figure, enough to see a kind break."""
    handwriting = import_script("tests/tools/handwriting")
    digits = predict.load(SAMPLE, "test")
    accuracy = {}
    for kind in handwriting.KINDS:
        if kind not in ("others", "small"):  # which take long
            drawn = handwriting.draw_variant(kind, 0, digits, seed=1, n=12)
            accuracy[kind] = handwriting.measure(model, *drawn).accuracy
    assert min(accuracy.values()) >= 75, accuracy
    assert np.mean([*accuracy.values()]) >= 95, accuracy
