"""read.py on a user's own pictures: what it reads, how it says so, what it refuses."""

import argparse
import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
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
from PIL import Image, ImageDraw, ImageOps

LABELS = (SAMPLE / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:]
BLANK = Image.new("RGB", (200, 300), "white")
INK = REPO / "data/ink.pt"


@pytest.fixture(scope="module")
def networks(read, trained):
    """What reads digits, and what finds ink."""
    ink = read.load_weights(str(INK), read.InkNet, "data/make_ink.py")
    return read.load_weights(str(trained.weights)), ink


def texts(answer: dict) -> list[str]:
    return [line["text"] for line in answer["lines"]]


def encode(image, format: str, **options) -> bytes:
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


# %% What is read: MNIST's pictures, which stay as they are
GREY = np.asarray(digit(4))
PNG = encode(digit(4), "PNG")
SOURCES = {
    "a file in memory": io.BytesIO(PNG),
    "an image": digit(4),
    "grey": GREY,
    "one channel": GREY[..., None],
    "colour": np.asarray(digit(4).convert("RGB")),
    "colour, opaque": np.asarray(digit(4).convert("RGBA")),
    "from 0 to 1": GREY / 255,
    "float32": GREY.astype(np.float32),
    "16 bits": GREY.astype(np.uint16) * 257,
    "int64": GREY.astype(np.int64),
    "a tensor": torch.tensor(GREY),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name, read, networks):
    answer = read.read_picture(*networks, SOURCES[name])
    assert answer == read.read_picture(*networks, PNG)
    assert answer["file"] == "" and len(answer["lines"]) == 1


# %% Pages
def frames(format: str, **options) -> bytes:
    images = [digit(number).convert("RGB") for number in (4, 7)]
    return encode(images[0], format, save_all=True, append_images=images[1:], **options)


# The data, and the numbers of its pages.
FRAMES = {
    "TIFF": (frames("TIFF"), [1, 2]),
    "TIFF of one page": (encode(digit(4), "TIFF"), [None]),
    "animated GIF": (frames("GIF"), [None]),
    "animated WebP": (frames("WEBP", lossless=True), [None]),
    "animated PNG": (frames("PNG"), [None]),
    "a phone's MPO": (frames("MPO", quality=95), [None]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name, read, networks):
    data, pages = FRAMES[name]
    answers = [answer for answer, _ in read.read_all(*networks, [data])]
    assert [answer["page"] for answer in answers] == pages
    alone = [read.read_picture(*networks, digit(number)) for number in (4, 7)]
    assert [*map(texts, answers)] == [*map(texts, alone)][: len(pages)]


def test_a_tiff_cut_short(read, networks):
    """What comes before is read, and the rest is an error."""
    sound, broken = read.read_all(*networks, [frames("TIFF")[:-400]])
    assert len(sound[0]["lines"]) == 1 and broken[0]["page"] == 2
    assert "truncated" in broken[0]["error"] or "dimensions" in broken[0]["error"]


# %% What is refused
def progressive() -> bytes:
    """A JPEG that says that it has 200 megapixels."""
    data = encode(digit(4), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + bytes([0x27, 0x10, 0x4E, 0x20]) + data[at + 4 :]


def noise(deviation: float) -> Image.Image:
    grain = np.random.default_rng(1).normal(200, deviation, (300, 400))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


LIGHT = Image.linear_gradient("L").resize((400, 300)).point(lambda v: 120 + v // 2)
REFUSED = {
    "white": (BLANK, "^Image: no digits found$"),
    "one pixel": (Image.new("L", (1, 1)), "no digits found"),
    "a row of pixels": (Image.new("L", (900, 1), 200), "no digits found"),
    "grain": (noise(4), "no digits found"),
    "coarse grain": (noise(25), "no digits found"),
    "uneven light": (LIGHT, "no digits found"),
    "a flat array": (np.zeros(9), r"^ndarray: shape \(9,\) is not"),
    "five channels": (np.zeros((9, 9, 5)), r"shape \(9, 9, 5\) is not"),
    "no pixels": (np.zeros((0, 9)), r"shape \(0, 9\) is not"),
    "nothing": (None, r"^NoneType: shape \(\) is not"),
    "damaged": (b"\xff\xd8\xff no image", "^bytes: not an image"),
    "cut short": (PNG[:-100], "truncated"),
    "many pixels": (b"P4 20000 20000 ", "^bytes: over 178,956,970 pixels; scale it"),
    "many, progressive": (progressive(), "over 178,956,970 pixels"),
    "a missing file": (Path("missing.png"), "^missing.png: No such file"),
    "a PDF": ("a.PDF", "^a.PDF: convert it first: pdftoppm -r 150 -png FILE scan$"),
    "two pages": (frames("TIFF"), "^bytes: 2 pages; read_all reads them$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, read, networks):
    picture, words = REFUSED[name]
    with pytest.raises(read.Error, match=words):
        read.read_picture(*networks, picture)


def test_a_jpeg_of_200_megapixels(read, tmp_path):
    """It is decoded at an eighth of its size."""
    data = encode(Image.new("L", (20000, 10000), 255), "JPEG")
    (tmp_path / "large.jpg").write_bytes(data)
    for picture in (data, tmp_path / "large.jpg"):
        image = read.open_picture(picture)
        assert read.decode(image)[1] == 12.5 and image.size == (2500, 1250)


def test_memory_holds_a_hundred_pictures(read, networks):
    taken = []
    pictures = (taken.append(number) or PNG for number in range(250))
    results = read.read_all(*networks, pictures)
    assert texts(next(results)[0]) and len(taken) == 100
    assert len(list(results)) == 249


# %% As users run it
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits in a folder and one below it, faulty files, hidden ones, and others."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in [(0, "0"), (2, "2"), (1, "more/1"), (3, ".hidden/3")]:
        (folder / name).parent.mkdir(exist_ok=True)
        digit(number).save(folder / f"{name}.png")
    pages = [BLANK, digit(7)]
    digit(4).save(folder / "scan.tif", save_all=True, append_images=pages)
    (folder / "._0.png").write_bytes(b"from a Mac")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "scan.pdf").write_text("%PDF")
    (folder / "scan.svg").write_text("<svg/>")
    return folder


def run_read(trained, *arguments, **options):
    options.setdefault("cwd", trained.folder)
    networks = "--weights", trained.weights, "--ink", INK
    return uv_run("read.py", *networks, *arguments, **options)


def test_text(folder, trained):
    """A line for each picture, in order; errors do not stop the others."""
    result = run_read(trained, folder, "missing.png")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    words = result.stdout.replace(f"{folder}{os.sep}", "").splitlines()
    starts = ["0.png ", "2.png ", "more", "scan.tif page 1 ", "scan.tif page 3 "]
    for line, start in zip(words, starts, strict=True):
        assert line.startswith(start) and line.partition(" %")[0].split()[-2].isdigit()
    errors = re.findall("error: .*", result.stderr)
    assert len(errors) == 4
    assert "damaged.jpg: not an image" in errors[0]
    assert "scan.pdf: convert it first: pdftoppm" in errors[1]
    assert "scan.tif page 2: no digits found" in errors[2]
    assert "missing.png: No such file" in errors[3]
    assert "note: passed over other files: .svg" in result.stderr


def test_json_and_csv(folder, trained, read, networks):
    """They say what the network says of the 28×28 pictures as they are."""
    result = run_read(trained, "--json", folder)
    assert result.returncode == 1, result.stderr
    answer = json.loads(result.stdout)
    errors = [(os.path.basename(e["file"]), e["page"]) for e in answer["errors"]]
    assert errors == [("damaged.jpg", None), ("scan.pdf", None), ("scan.tif", 2)]
    where = [("0.png", None), ("2.png", None), ("more/1.png", None)]
    where += [("scan.tif", 1), ("scan.tif", 3)]
    rows = list(csv.DictReader(io.StringIO(run_read(trained, "--csv", folder).stdout)))
    parts = zip(answer["images"], where, [0, 2, 1, 4, 7], rows, strict=True)
    for image, (name, page), number, row in parts:
        file = str(folder / name)
        assert [*row] == ["file", "page", "line", "text", "probability", "unsure"]
        assert (image["file"], image["page"]) == (file, page)
        [line], [one] = image["lines"], image["lines"][0]["digits"]
        [same] = read.read_picture(*networks, digit(number))["lines"]
        expected = same["digits"][0]["probabilities"]
        assert one["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert one["box"] == [0, 0, 28, 28] and line["marks"] == []
        assert line["text"] == same["text"]
        text, unsure = line["text"], str(line["unsure"])
        p = f"{line['probability']:.6f}"
        assert [*row.values()] == [file, str(page or ""), "1", text, p, unsure]


def test_stdin_and_nothing_to_read(folder, trained, tmp_path):
    """Writes nothing, in a folder with nothing in it."""
    with open(folder / "2.png", "rb") as file:
        piped = run_read(trained, "-", cwd=tmp_path, stdin=file)
    named = run_read(trained, folder / "2.png", cwd=tmp_path)
    assert piped.returncode == named.returncode == 0
    assert piped.stdout.split()[1:] == named.stdout.split()[1:]
    nothing = run_read(trained, tmp_path, cwd=tmp_path)
    assert_one_error_line(nothing, "no images in", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_names(read, trained, tmp_path, monkeypatch, capsys):
    """Patterns that no shell has expanded, but names first; and the home."""
    for name in ("a.png", "b.png", "[a].png"):
        (tmp_path / name).write_bytes(PNG)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    networks = "--weights", str(trained.weights), "--ink", str(INK)
    for pattern, names in (
        ("~/?.png", ["a.png", "b.png"]),
        ("~/[a].png", ["[a].png"]),
        (f"{tmp_path}/*", ["[a].png", "a.png", "b.png"]),
    ):
        assert read.main([*networks, "--json", pattern]) == 0
        images = json.loads(capsys.readouterr().out)["images"]
        assert [os.path.basename(image["file"]) for image in images] == names
    assert read.main([*networks, "*.none"]) == 1
    assert "error: *.none: " in capsys.readouterr().err


def test_names_that_the_output_cannot_encode(trained, tmp_path):
    """As on Windows, where output into a file has its letters alone."""
    digit(4).save(tmp_path / "ā 七.png")
    env = ENV | {"PYTHONIOENCODING": "cp1252"}
    result = run_read(trained, "ā 七.png", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:2] == ["\\u0101", "\\u4e03.png"]


def test_plots(trained, tmp_path):
    digit(0).save(tmp_path / "a.tif", save_all=True, append_images=[digit(1)])
    command = ["uv", "run", "--with", "matplotlib==3.11.2", REPO / "read.py", "a.tif"]
    options = ["--ink", INK, "--weights", trained.weights, "--plots", "plots"]
    result = run(*command, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "plots/readings.png") as plot:
        blue = np.asarray(plot.convert("RGB")).astype(int) @ [-1, -1, 2] > 300
    assert blue.sum() > 500  # two boxes


# %% Own pictures for train.py
def test_to_mnist(read, predict, tmp_path, monkeypatch, capsys):
    """Folders 0 to 9 become MNIST's files, which predict.py and train.py read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    numbers = {n: [i for i in range(300) if LABELS[i] == n][:7] for n in (3, 4)}
    for label, same in numbers.items():
        folder = tmp_path / f"labelled/{label}"
        folder.mkdir(parents=True)
        for position, number in enumerate(same):
            digit(number).save(folder / f"{position}.png")
    BLANK.save(folder / "blank.png")
    (folder / "._0.png").write_bytes(b"from a Mac")
    options = "--ink", str(INK), "--to-mnist=~/own"
    assert read.main([*options, str(tmp_path / "labelled")]) == 0
    output = capsys.readouterr()
    words = "own: 12 images to train, 2 (every fifth) to test\n"
    assert output.out.endswith(words)
    [note] = re.findall("note: .*", output.err)
    assert "left out" in note and "blank.png: no digits found" in note
    assert predict.load(tmp_path / "own", "train").labels.tolist() == [3] * 6 + [4] * 6
    images, labels = predict.load(tmp_path / "own", "test")
    assert labels.tolist() == [3, 4]
    assert np.array_equal(images[0], np.asarray(digit(numbers[3][4])))


def test_to_mnist_refuses(read, tmp_path):
    for name in ("full/file.txt", "other/three/a.png", "none/3/a.svg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for target, source, words in (
        ("full", "none", "full exists; name a new"),
        ("own", "other", "three: pictures must lie in folders named 0 to 9"),
        ("own", "none", "no picture of one digit"),
    ):
        with pytest.raises(read.Error, match=words):
            paths = str(tmp_path / target), str(tmp_path / source)
            read.main(["--ink", str(INK), "--to-mnist", *paths])
    assert not (tmp_path / "own").exists()


# %% Drawn handwriting
# The sample's test images that are nearest to the mean of their digit.
CLEAR = [708, 43, 543, 334, 6, 546, 948, 126, 228, 817]


def pen(label: int, side: int = 200) -> Image.Image:
    """A typical digit, cropped to its ink, dark on white."""
    image = digit(CLEAR[label])
    image = image.crop(image.getbbox())
    size = [round(length * side / max(image.size)) for length in image.size]
    return ImageOps.invert(image.resize(size, Image.Resampling.BICUBIC))


def photo(label: int) -> Image.Image:
    return ImageOps.expand(pen(label), 100, 255)


def write(page: Image.Image, text: str, x: int, y: int, side=90, fall=0.0) -> None:
    """Write digits in a row whose middle begins at (x, y); it falls by `fall`."""
    for character in text:
        ink = pen(int(character), side)
        at = (x, round(y - ink.height / 2))
        page.paste(0, at, ImageOps.invert(ink))
        step = ink.width + side // 3
        x, y = x + step, y + step * fall


def page(*lines: str, **how) -> Image.Image:
    """Lines of digits on white paper."""
    sheet = Image.new("L", (900, 200 + 200 * len(lines)), 255)
    for number, text in enumerate(lines):
        write(sheet, text, 120, 180 + 200 * number, **how)
    return sheet


def two_columns() -> Image.Image:
    sheet = page("123", "786")
    write(sheet, "40", 650, 180)
    write(sheet, "52", 650, 380)
    return sheet


def polyline(*strokes, width: int = 14) -> Image.Image:
    image = Image.new("L", (400, 400), 255)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, 0, width, "curve")
    return image


# A 4 that fills 28×28: not laid out like MNIST.
STRETCHED = digit(CLEAR[4]).crop(digit(CLEAR[4]).getbbox()).resize((28, 28))
BODY = [(165, 125), (158, 190), (200, 178), (248, 225), (215, 292), (145, 278)]
FLAG = [(190, 108), (262, 104)]
FOOTED = [(165, 150), (205, 100), (205, 290)], [(150, 292), (262, 292)]
EIGHT = [
    (200, 80),
    (150, 130),
    (250, 250),
    (200, 310),
    (150, 250),
    (250, 130),
    (200, 80),
]
# What a picture shows, and the lines to read.
PICTURES = {
    "one digit": (photo(7), ["7"]),
    "a row": (page("2480"), ["2480"]),
    "lines, top to bottom": (page("12345", "67890"), ["12345", "67890"]),
    "a sloping row": (page("4826", side=100, fall=0.45), ["4826"]),
    "two columns": (two_columns(), ["12340", "78652"]),
    "light on dark": (ImageOps.invert(page("94")), ["94"]),
    "a 5's flag apart": (polyline(BODY, FLAG), ["5"]),
    "a 1 with a foot": (polyline(*FOOTED), ["1"]),
    "thin strokes": (polyline(EIGHT, width=6), ["8"]),
    "thick strokes": (polyline(EIGHT, width=24), ["8"]),
    "a stretched crop": (STRETCHED, ["4"]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_drawn_pictures(name, read, networks):
    image, expected = PICTURES[name]
    answer = read.read_picture(*networks, image)
    lines = answer["lines"]
    assert texts(answer) == expected
    assert name == "two columns" or not any(line["marks"] for line in lines)
    for line in lines:
        odds = [entry["probability"] for entry in line["digits"]]
        assert line["probability"] == pytest.approx(np.prod(odds))
        assert line["unsure"] == (min(odds) < 0.6 or line["marks"] != [])
    product = np.prod([line["probability"] for line in lines])
    assert answer["probability"] == pytest.approx(product)
    assert answer["unsure"] == any(line["unsure"] for line in lines)


def marked(*strokes, end=400) -> Image.Image:
    """Two digits, strokes, and two digits from `end` on."""
    sheet = page("12", "")
    write(sheet, "50", end, 180)
    for stroke in strokes:
        ImageDraw.Draw(sheet).line(stroke, 0, 12)
    return sheet


MARKS = {  # in a line that is read 1250, and where the mark begins
    "a point": (marked([(325, 222), (337, 222)]), 325),
    "a minus sign": (marked([(305, 180), (355, 180)]), 305),
    "a wide gap": (marked(end=470), 260),
}


@pytest.mark.parametrize("name", MARKS)
def test_what_is_no_digit_makes_a_line_unsure(name, read, networks, capsys):
    """Also in a large picture, which is read scaled."""
    image, left = MARKS[name]
    image = image.resize((3 * image.width, 3 * image.height))
    answer = read.read_picture(*networks, image)
    [line] = answer["lines"]
    assert line["text"] == "1250" and line["unsure"] and answer["unsure"]
    [(x, y, w, h)] = np.divide(line["marks"], 3)
    assert abs(x - left) < 15 and 120 < y + h / 2 < 240 and w < 230 and h < 120
    how = argparse.Namespace(json=False, csv=False, plots=None)
    assert read.report([(answer, [])], how) == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "1250" and words[3] == "unsure"


def test_boxes_lie_on_the_digits_of_the_upright_picture(read, networks, tmp_path):
    """Also of a large picture with an orientation, which is read scaled and turned."""
    sheet = page("30", side=120).resize((3600, 1600))
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / "turned.jpg"
    sheet.rotate(90, expand=True).save(path, exif=turned)
    dark = np.asarray(sheet) < 128
    [line] = read.read_picture(*networks, path)["lines"]
    for entry in line["digits"]:
        x, y, w, h = entry["box"]
        found = dark[y : y + h, x : x + w]
        columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
        assert np.ptp(columns) > 0.85 * w and np.ptp(rows) > 0.85 * h
        dark[y - 12 : y + h + 12, x - 12 : x + w + 12] = False
    assert not dark.any()


def test_what_may_be_no_digit_is_less_likely(read, networks, monkeypatch):
    """Each of the ten is as much less likely."""
    pixels = np.asarray(digit(3).convert("RGB"))
    found = read.find_digits(None, pixels)
    first = read.read_picture(*networks, pixels)["lines"][0]["digits"][0]
    assert sum(first["probabilities"]) == pytest.approx(1)
    doubted = found._replace(votes=np.array([0.5]))
    monkeypatch.setattr(read, "find_digits", lambda *_: doubted)
    [line] = read.read_picture(*networks, pixels)["lines"]
    [other] = line["digits"]
    halves = np.array(first["probabilities"]) / 2
    assert other["probabilities"] == pytest.approx(halves)
    assert line["unsure"] and other["unsure"]


def test_mnist_passes_as_it_is_and_stretched_crops_do_not(read):
    for number in range(1000):
        pixels = np.asarray(digit(number).convert("RGB"))
        assert np.array_equal(read.find_digits(None, pixels).images[0], pixels[..., 0])
    assert not read.is_mnist(np.asarray(STRETCHED))


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
}


def test_formats(trained, tmp_path):
    """Every form of a digit is read; 108 megapixels are no bomb."""
    for number in range(8):
        plain = photo(number)
        for name, convert in FORMATS.items():
            convert(plain).save(tmp_path / f"{number}-{name}")
        for ink in ("black", "white"):
            layer = Image.new("RGBA", plain.size, ink)
            layer.putalpha(ImageOps.invert(plain))
            layer.save(tmp_path / f"{number}-{ink}-on-nothing.png")
    plain.resize((12000, 9000)).save(tmp_path / "7-huge.png")
    result = run_read(trained, "--json", tmp_path)
    assert result.returncode == 0, result.stderr
    images = json.loads(result.stdout)["images"]
    names = [os.path.basename(image["file"]) for image in images]
    assert [texts(image) for image in images] == [[name[0]] for name in names]
    assert len(images) == 8 * (len(FORMATS) + 2) + 1


def test_drawn_photographs(read, networks, predict):
    """A few of each kind: too few for a figure, enough to see a kind break."""
    handwriting = import_script("tests/tools/handwriting")
    digits = predict.load(SAMPLE, "test")
    accuracy = {}
    for kind in handwriting.KINDS:
        if kind != "small":  # which takes long
            drawn = handwriting.draw_variant(kind, 0, digits, seed=1, n=12)
            accuracy[kind] = handwriting.measure(*networks, *drawn).accuracy
    assert min(accuracy.values()) >= 75, accuracy
    assert np.mean([*accuracy.values()]) >= 95, accuracy
