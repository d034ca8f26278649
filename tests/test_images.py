"""predict.py on images of one's own, its reports and its pictures."""

import csv
import io
import json
import os
import re
import socket
import sys

import pytest
import torch
from conftest import REPO, SAMPLE, run, uv_run
from PIL import Image, ImageDraw, ImageFilter, ImageOps


@pytest.fixture(scope="session")
def digits(predict):
    return predict.load(SAMPLE, "test")


@pytest.fixture(scope="session")
def model(predict, trained):
    return predict.load_weights(str(trained.weights))


def call(script, monkeypatch, capsys, *arguments):
    """Run a script's main in this process, as the command line does; returns status, stdout, stderr."""
    try:
        script.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def predict_main(predict, trained, monkeypatch, capsys):
    return lambda *arguments: call(predict, monkeypatch, capsys, *arguments, "--weights", trained.weights)


@pytest.fixture
def folder(tmp_path, digits):
    """Twenty of the sample's test images as PNGs below a folder, and what should not disturb them."""
    images, labels = digits
    (tmp_path / "digits/more").mkdir(parents=True)
    for i in range(20):
        path = tmp_path / "digits" / ("more" if i % 2 else "") / f"{i:02}.png"
        Image.fromarray(images[i].numpy()).save(path)
    (tmp_path / "digits/labels.txt").write_text("not an image")
    return tmp_path / "digits"


def photo(image: torch.Tensor, side: int = 300) -> Image.Image:
    """A digit as a dark pen would write it on white paper, smooth, in the middle of a page."""
    ink = Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))
    page = Image.new("L", (side * 3, side * 2), 255)
    page.paste(ImageOps.invert(ink), (side, side // 2))
    return page


# One line, a row, CSV, JSON


def test_one_line_for_each_image(folder, predict_main, model, predict, digits):
    status, out, err = predict_main(folder / "02.png", folder)
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 21), err
    order = sorted(os.listdir(folder))  # files and folders by name: 00.png … 18.png, labels.txt, more
    assert [re.split(r"\s{2,}", line)[0].rpartition("/digits/")[2] for line in lines] == [
        "02.png", *(name for name in order if name.endswith(".png")), *(f"more/{i:02}.png" for i in range(1, 20, 2))
    ]  # fmt: skip
    probabilities = predict.classify(model, digits[0][2:3]).softmax(1)[0]
    best, other = probabilities.topk(2).indices.tolist()
    assert re.fullmatch(rf"\S+02\.png +{best} +{100 * probabilities[best]:.2f} %(   \(also {other}: {100 * probabilities[other]:.2f} %\))?", lines[0])
    assert ("also" in lines[0]) == bool(probabilities[other] >= 0.01)


def test_the_second_digit_is_named_where_it_counts(predict, monkeypatch, capsys, tmp_path, trained):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    for second, said in ((0.0920, True), (0.0002, False)):
        row = torch.full((10,), 1e-6)
        row[3], row[5] = 1 - second, second
        monkeypatch.setattr(predict, "classify", lambda model, images, row=row: row.log()[None])
        monkeypatch.setattr(predict, "prepare", lambda image: torch.zeros(28, 28, dtype=torch.uint8))
        _, out, _ = call(predict, monkeypatch, capsys, tmp_path / "a.png", "--weights", trained.weights)
        assert f"3   {100 * (1 - second):.2f} %" in out and ("(also 5: 9.20 %)" in out) == said


def test_json_csv_and_probabilities_agree(folder, predict_main, digits):
    _, out, _ = predict_main("--json", folder)
    entries = json.loads(out)["images"]
    assert len(entries) == 20 and json.loads(out)["errors"] == []
    for entry in entries:
        assert len(entry["probabilities"]) == 10 and sum(entry["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert entry["probability"] == max(entry["probabilities"]) == entry["probabilities"][entry["digit"]]
    rows = list(csv.DictReader(io.StringIO(predict_main("--csv", folder)[1])))
    table = [line.split() for line in predict_main("--probabilities", folder)[1].splitlines()]
    for entry, row, line in zip(entries, rows, table, strict=True):
        assert (row["file"], int(row["digit"])) == (entry["file"], entry["digit"]) == (line[0], int(line[1]))
        assert float(row["probability"]) == pytest.approx(entry["probability"], abs=1e-6)
        assert [float(row[str(d)]) for d in range(10)] == pytest.approx(entry["probabilities"], abs=1e-6)
        assert [float(p) for p in line[2:]] == pytest.approx(entry["probabilities"], abs=1e-4)


def test_an_unreadable_image_does_not_stop_the_others(folder, predict_main):
    (folder / "05.png").write_text("no image")
    (folder / "07.png").symlink_to("nowhere.png")
    status, out, err = predict_main(folder, "missing.png")
    assert (status, len(out.splitlines())) == (1, 20)
    assert [line for line in err.splitlines() if "error" in line] and all(f"{name}: " in err for name in ("05.png", "07.png", "missing.png"))
    assert "05.png: it is no image that Pillow knows" in err
    assert err.count("error: ") == 3
    status, out, _ = predict_main(folder, "--json")
    assert status == 1 and [os.path.basename(e["file"]) for e in json.loads(out)["errors"]] == ["05.png", "07.png"]


def test_a_blank_image_has_no_ink(tmp_path, predict_main):
    for name, image in (("white", Image.new("RGB", (200, 300), "white")), ("black", Image.new("L", (28, 28))), ("grey", Image.new("L", (90, 90), 128))):
        image.save(tmp_path / f"{name}.png")
    status, out, err = predict_main(tmp_path)
    assert (status, out) == (1, "") and err.count("no ink found") == 3


def test_stdin_and_no_data_needed(folder, trained, tmp_path):
    """An image on stdin, as a user pipes it, in a folder with nothing in it; no mirror is asked."""
    with open(folder / "04.png", "rb") as file:
        piped = uv_run("predict.py", "-", "--weights", trained.weights, cwd=tmp_path, stdin=file)
    named = uv_run("predict.py", folder / "04.png", "--weights", trained.weights, cwd=tmp_path)
    assert piped.returncode == named.returncode == 0, piped.stderr
    assert piped.stdout.split()[0] == "-" and piped.stdout.split()[1:] == named.stdout.split()[1:]
    assert not (tmp_path / "data").exists()


def test_what_pillow_warns_of_is_read_in_silence(digits, trained, tmp_path):
    """An EXIF block that breaks off: its warning would come without the file's name, and would be an error under -W error."""
    broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"
    photo(digits[0][4]).save(tmp_path / "a.jpg", exif=broken)
    result = run(sys.executable, "-W", "error::UserWarning", REPO / "predict.py", "--weights", trained.weights, tmp_path / "a.jpg", cwd=tmp_path)
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1 and "arning" not in result.stderr, result.stderr


def test_what_is_no_plain_file_is_a_line(folder, trained, tmp_path):
    """A named pipe and a socket, in a folder and by name: nothing waits for a writer, and the others are read."""
    os.mkfifo(folder / "pipe.png")
    os.symlink("pipe.png", folder / "to a pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket.png"))
        result = uv_run("predict.py", folder, folder / "pipe.png", "/dev/null", "--weights", trained.weights, cwd=tmp_path, timeout=60)
    assert (result.returncode, len(result.stdout.splitlines())) == (1, 20), result.stderr
    assert [line.split("/")[-1] for line in result.stderr.splitlines() if "error: " in line] == [
        f"{name}: it is no plain file" for name in ("pipe.png", "socket.png", "to a pipe.png", "pipe.png", "null")
    ]


def test_a_command_in_place_of_a_file(folder, trained, tmp_path):
    """<(command), and /dev/stdin as a pipe."""
    for line in ('uv run "$0" <(cat "$1") --weights "$2"', 'cat "$1" | uv run "$0" /dev/stdin --weights "$2"'):
        result = run("bash", "-c", line, REPO / "predict.py", folder / "04.png", trained.weights, cwd=tmp_path, timeout=60)
        assert result.returncode == 0 and result.stdout.startswith("/dev/") and len(result.stdout.splitlines()) == 1, result.stderr


def test_a_folder_without_images_is_a_line(folder, tmp_path, predict_main):
    """Named by the user, not where it lies below another folder."""
    (tmp_path / "empty/nothing").mkdir(parents=True)
    (tmp_path / "empty/notes.txt").write_text("not an image")
    (folder / "empty").mkdir()
    status, out, err = predict_main(tmp_path / "empty", folder)
    assert (status, len(out.splitlines())) == (1, 20)
    assert [line for line in err.splitlines() if "error: " in line] == [f"error: {tmp_path / 'empty'}: no images in it"]
    errors = json.loads(predict_main("--json", tmp_path / "empty")[1])["errors"]
    assert errors == [{"file": str(tmp_path / "empty"), "error": "no images in it"}]


def test_a_bug_is_not_taken_for_a_bad_image(predict, folder, monkeypatch):
    """Only what Pillow raises, while it opens and decodes, is the image's fault."""
    monkeypatch.setattr(predict, "bounds", lambda mask: [][0])
    photo(torch.full((28, 28), 255, dtype=torch.uint8)).save(folder / "page.png")
    with pytest.raises(IndexError):
        predict.read_image(str(folder / "page.png"))


def test_images_and_data_sets_do_not_mix(predict_main):
    for arguments in (["--csv"], ["--probabilities"], ["x.png", "--report"], ["--json", "--csv", "x.png"]):
        assert predict_main(*arguments)[0] == 2


# Preparation


def test_mnists_own_form_passes_unchanged(predict, digits, model, tmp_path):
    """The test images as PNGs score just what they score as a data set."""
    images, labels = digits
    for i, image in enumerate(images):
        path = tmp_path / f"{i:04}.png"
        Image.fromarray(image.numpy()).save(path)
    results = list(predict.read_images(model, [str(tmp_path)], 300))
    assert torch.stack([pixels for _, pixels, _ in results]).equal(images)
    read = torch.stack([probabilities for *_, probabilities in results]).argmax(1)
    assert read.equal(predict.classify(model, images).argmax(1))


def kinds(page: Image.Image) -> dict[str, Image.Image]:
    """The same dark-on-white page in forms that should all be read alike."""
    white = Image.new("L", page.size, 255)
    rotated = page.rotate(90, expand=True)
    rotated.getexif()[0x0112] = 6  # "turn me by 90 degrees clockwise"
    paper = Image.linear_gradient("L").resize(page.size).point(lambda v: 120 + v // 3)
    clear = Image.new("RGBA", page.size, (20, 20, 120, 0))
    clear.putalpha(ImageOps.invert(page))
    left, top, right, bottom = ImageOps.invert(page).getbbox()
    boxed = page.copy()
    ImageDraw.Draw(boxed).rectangle((left - 60, top - 60, right + 60, bottom + 60), None, 60, 14)
    clear_white = Image.new("RGBA", page.size, (255, 255, 255, 0))
    clear_white.putalpha(ImageOps.invert(page))
    return {
        "dark on white": page,
        "light on black": ImageOps.invert(page),
        "transparent": clear,
        "white on transparent": clear_white,
        "black frame": ImageOps.expand(page, 8, 0),
        "white frame": ImageOps.expand(ImageOps.invert(page), 8, 255),
        "in a form's box": boxed,
        "on a table": ImageOps.expand(page.convert("RGB"), 60, (70, 50, 30)).rotate(7, Image.Resampling.BICUBIC, fillcolor=(70, 50, 30)),
        "red on as bright a blue": Image.composite(Image.new("RGB", page.size, "blue"), Image.new("RGB", page.size, "red"), page),
        "blue pen": Image.composite(Image.new("RGB", page.size, (240, 225, 200)), Image.new("RGB", page.size, (40, 60, 160)), page),
        "uneven paper": Image.composite(paper, white.point(lambda v: 30), page),
        "turned by EXIF": rotated,
        "16 bit": Image.frombytes("I;16", page.size, bytes(byte for value in page.tobytes() for byte in (0, value))),
        "palette": page.convert("P"),
        "CMYK": page.convert("CMYK"),
        "small": page.resize((page.width // 8, page.height // 8), Image.Resampling.LANCZOS),
    }


def test_photos_of_a_digit_are_read(predict, model, digits, tmp_path):
    """Each form of a page; 20 digits that the network reads right as they are."""
    images, labels = digits
    chosen = (predict.classify(model, images).softmax(1).max(1).values > 0.9).nonzero().flatten()[:20]
    right = {}
    for i in chosen.tolist():
        for name, image in kinds(photo(images[i])).items():
            path = tmp_path / f"{name}.{'png' if image.mode != 'CMYK' else 'jpg'}"
            image.save(path, exif=image.getexif())
            pixels = predict.read_image(str(path))
            assert pixels.shape == (28, 28) and pixels.dtype == torch.uint8
            right.setdefault(name, []).append(int(predict.classify(model, pixels[None]).argmax()) == int(labels[i]))
    assert min(sum(hits) for hits in right.values()) >= 18, {name: sum(hits) for name, hits in right.items()}


def test_prepared_as_mnist_was(predict, digits):
    """Longer side 20 pixels, centre of mass in the middle (LeCun et al. 1998)."""
    for image in digits[0][:10]:
        pixels = predict.prepare(photo(image)).float()
        rows, columns = (pixels.amax(1) > 40).nonzero().flatten(), (pixels.amax(0) > 40).nonzero().flatten()
        longer = max(rows[-1] - rows[0], columns[-1] - columns[0]).item() + 1
        assert 18 <= longer <= 22
        weight = pixels / pixels.sum()
        assert abs((weight.sum(1) * torch.arange(28)).sum() - 13.5) < 1.2 and abs((weight.sum(0) * torch.arange(28)).sum() - 13.5) < 1.2


def test_what_surrounds_the_page_becomes_paper(predict):
    """A frame of any width while the page is more than half. What leaves more of the edge free may be a digit or a shadow, and
    what leaves no rectangle a thick digit."""
    paper = Image.new("RGB", (120, 90), (250, 250, 240))
    paper.paste((30, 30, 30), (40, 30, 60, 70))
    for width in (1, 9, 14):
        page = predict.without_surroundings(ImageOps.expand(paper, width, (90, 20, 20)))
        assert page.crop((width, width, width + 120, width + 90)).tobytes() == paper.tobytes()
        page.paste(paper, (width, width))
        page.paste((250, 250, 240), (width + 40, width + 30, width + 60, width + 70))
        assert page.getcolors() == [(page.width * page.height, (250, 250, 240))]
    turned = ImageOps.expand(Image.new("L", (120, 90), 250), 10, 50).rotate(5, Image.Resampling.BICUBIC, fillcolor=50).convert("RGB")
    close = turned.crop(turned.convert("L").point(lambda v: 255 * (v > 100)).getbbox())  # its corners are on the edge
    for page in (turned, close):
        assert predict.without_surroundings(page).convert("L").getextrema()[0] > 230  # its soft rim is gone too
    zero = Image.new("RGB", (80, 120), "white")
    ImageDraw.Draw(zero).ellipse((1, 1, 78, 118), "black")
    for page in (ImageOps.expand(paper, (3, 3, 0, 0), 0), ImageOps.expand(paper, (0, 9, 0, 0), 0), zero):
        assert predict.without_surroundings(page).tobytes() == page.tobytes()


def test_an_angular_zero_is_no_box(predict):
    """Nothing is in it: it is the ink itself."""
    page = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(page).rectangle((60, 40, 140, 160), None, 0, 10)
    rows, columns = predict.prepare(page).nonzero().T
    assert rows.max() - rows.min() >= 18 and 11 <= columns.max() - columns.min() <= 16


def test_folders_are_read_in_batches(predict, model, folder, monkeypatch):
    """However many images there are, no more than a batch of them is prepared ahead."""
    prepared = []
    original = predict.prepare
    monkeypatch.setattr(predict, "prepare", lambda image: prepared.append(1) or original(image))
    results = predict.read_images(model, [str(folder)], 4)
    next(results)
    assert len(prepared) == 4
    assert len([1 for _ in results]) == 19 and len(prepared) == 20


# Reports and pictures


def test_report(predict_main, trained):
    status, out, _ = predict_main("--data-dir", SAMPLE, "--report")
    rows = re.findall(r"^ +(\d) +(\d+) +(\d+) +(\d+\.\d\d) %$", out, re.M)
    assert [int(row[0]) for row in rows] == list(range(10)) and all(int(row[1]) == 100 for row in rows)
    correct = sum(int(row[2]) for row in rows)
    assert out.splitlines()[-1] == trained.stdout.splitlines()[-1] and f"{correct / 10:.2f} %" in out.splitlines()[-1]
    confusions = re.findall(r"^ +(\d) +(\d) +(\d+)$", out, re.M)
    assert 1 <= len(confusions) <= 5 and all(true != predicted for true, predicted, _ in confusions)
    counts = json.loads(predict_main("--data-dir", SAMPLE, "--report", "--json")[1])["confusion"]
    assert [counts[d][d] for d in range(10)] == [int(row[2]) for row in rows]
    for true, predicted, times in confusions:
        assert counts[int(true)][int(predicted)] == int(times)


def test_report_of_few_images(predict):
    """Digits that are not among the images have no accuracy, and where nothing is misread there are no confusions."""
    few = torch.tensor([3, 3, 5])
    assert predict.digit_report(few, few.byte()).splitlines()[1:] == ["    3       2        2  100.00 %", "    5       1        1  100.00 %"]


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 20)) > 10
        return image.size


def test_pictures(predict_main, train, monkeypatch, capsys, folder, tmp_path):
    status, _, err = predict_main("--data-dir", SAMPLE, "--plots", tmp_path / "plots")
    assert status == 0, err
    status, out, err = predict_main(folder, "--plots", tmp_path / "plots/new")
    assert (status, len(out.splitlines())) == (0, 20), err
    status, _, err = call(train, monkeypatch, capsys, "--data-dir", SAMPLE, "--epochs", 0.2, "--plots", tmp_path / "plots", "--weights", tmp_path / "w.pt")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "plots").rglob("*.*")} == {"confusion.png", "errors.png", "examples.png", "training.png", "predictions.png"}
    assert all(min(size(path)) > 150 for path in (tmp_path / "plots").rglob("*.png"))
    assert size(tmp_path / "plots/new/predictions.png")[1] > 20 * 100


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_pictures_without_matplotlib(script, trained, tmp_path):
    """The scripts' own environments have none: one line says how to add it, before any work."""
    result = uv_run(script, "--plots", "plots", "--weights", trained.weights, "--data-dir", SAMPLE, cwd=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"error: --plots needs matplotlib; run it as: uv run --with matplotlib {script} --plots DIR"
