"""draw.py in Debian's Chromium, over HTTP and on the command line."""

import http.client
import json
import resource
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ENV, REPO, digit, files_below, import_script, uv_run
from playwright.sync_api import expect, sync_playwright

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync"
PHONE = {"width": 390, "height": 664}
STROKES = {  # in percent of the drawing's shorter side
    "7": [(30, 20), (70, 20), (60, 40), (45, 80)],
    "1": [(50, 15), (50, 80)],
    "0": [(50, 20), (33, 32), (30, 60), (50, 80), (70, 60), (67, 32), (50, 20)],
    "4": [(42, 20), (32, 55), (60, 55), (50, 55), (50, 35), (50, 80)],
    "2": [(35, 35), (47, 20), (59, 35), (33, 78), (65, 78)],
}
UPSTROKED = [(32, 23), (60, 20), (60, 80)]  # a 1 that is read as a 7
LIKE_IT = [(34, 26), (59, 23), (61, 77)]
ONE, SEVEN = digit(0).tobytes(), digit(8).tobytes()
expect.set_options(timeout=60_000)


# %% Helpers
def post(address, path="/read/0", body=b"", headers=None, method="POST"):
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def reading(address, body: bytes = b"") -> dict:
    return json.loads(post(address, body=body)[1])


def draw(page, *strokes: list, size: float = 1) -> None:
    """The strokes alone, `size` times as large; the last one ends with the pen down."""
    page.mouse.up()
    page.click("#clear")
    box = page.locator("#drawing").bounding_box()
    scale = size * min(box["width"], box["height"]) / 100
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for stroke in strokes:
        page.mouse.up()
        places = [(x + (a - 50) * scale, y + (b - 50) * scale) for a, b in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places:
            page.mouse.move(*place, steps=4)


@pytest.fixture(scope="module")
def serve():
    """Starts draw.py or `script` in a folder; gives the process and its address."""
    processes = []

    def serve(folder, *options, script=REPO / "draw.py"):
        command = ["uv", "run", script, "--port", "0", "--no-browser", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=folder, env=ENV, **pipes)
        processes.append(process)
        return process, process.stdout.readline().split()[4]

    yield serve
    for process in processes:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def shared(serve, trained):
    return serve(trained.folder)[1]


@pytest.fixture
def address(shared):
    """That of a server which has not been taught."""
    assert post(shared, "/forget")[0] == 200
    return shared


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with the sample and with weights of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(REPO / "data/sample")
    shutil.copy(trained.weights, tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def browser():
    if not (path := shutil.which("chromium")):
        pytest.skip("no Chromium here; apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=FLAGS.split())


@pytest.fixture
def page(address, browser):
    """The page on a phone. At last it has met no error."""
    errors = []
    with browser.new_page(viewport=PHONE, is_mobile=True) as page:
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.locator("#hint")).to_have_text("Draw a digit.")
        yield page
    assert errors == []


# %% Drawing
def test_answer_before_pen_up_then_undo(page):
    draw(page, STROKES["7"])
    expect(page.locator("#answer")).to_have_text("7")
    expect(page.locator("#bars small >> nth=7")).to_have_text("100%")
    page.mouse.up()
    page.click("#undo")
    expect(page.locator("#answer")).to_have_text("")


@pytest.mark.parametrize("height", [40, 100, 500])
def test_any_size(address, browser, height):
    """Nothing reads from a canvas, so no browser's noise on that changes an answer."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script("delete CanvasRenderingContext2D.prototype.getImageData")
    page.add_init_script("delete HTMLCanvasElement.prototype.toDataURL")
    page.goto(address)
    size = height / 0.6 / page.locator("#drawing").bounding_box()["height"]
    for name, stroke in STROKES.items():
        draw(page, stroke, size=size)
        expect(page.locator("#answer")).to_have_text(name)


def test_numbers_dots_and_dashes(page):
    """Five digits, 40 pixels high; a dot beside a digit is left out."""
    hint, answer = page.locator("#hint"), page.locator("#answer")
    places = zip((-170, -85, 0, 85, 170), "71012", strict=True)
    number = [[(x + right, y) for x, y in STROKES[name]] for right, name in places]
    draw(page, *number, size=0.22)
    expect(answer).to_have_text("71012")
    expect(hint).to_contain_text("in most doubt")
    page.keyboard.press("4")
    expect(page.locator("#lesson")).to_contain_text("draw one digit")
    draw(page, [(5, 75), (5, 76)], STROKES["7"])
    expect(answer).to_have_text("7")
    for stroke in [(30, 50), (70, 51)], [(30, 50)]:
        draw(page, stroke)
        expect(hint).to_have_text("A dot or a dash is no digit.")


def test_doubt(page):
    """Of two digits the one in doubt is grey, and the bars are its."""
    odds = [[0, 0, 0.9, 0.1, *[0] * 6], [0, 0.55, 0, 0, 0, 0, 0, 0.45, 0, 0]]
    page.route("**/read/*", lambda route: route.fulfill(json={"odds": odds}))
    draw(page, STROKES["1"])
    expect(page.locator("#answer")).to_have_text("21?")
    expect(page.locator("#answer i")).to_have_text("1?")
    expect(page.locator("#bars small >> nth=7")).to_have_text("45%")
    expect(page.locator("#hint")).to_contain_text("digit 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (320, 568), (844, 390), (1920, 1080)])
def test_accessible(address, browser, size, scheme):
    """Nothing serious for axe-core, nothing to scroll, targets of 44 pixels."""
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.goto(address)
    draw(page, STROKES["7"])
    page.keyboard.press("1")
    expect(page.locator("#lesson")).to_contain_text("take it back")
    found = Axe().run(page).response["violations"]
    assert [x for x in found if x["impact"] in ("serious", "critical")] == []
    sides = page.locator("html").evaluate("x => [x.scrollWidth, x.scrollHeight]")
    assert sides == list(size)
    for button in page.locator("button").all():
        assert button.bounding_box()["height"] >= 44
    expect(page.get_by_role("button", name="Teach 7")).to_be_visible()


# %% Teaching
def test_one_lesson(serve, folder, browser):
    """It lasts, other scripts take it, and without a connection nothing is learned."""
    process, address = serve(folder)
    weights = (folder / "data/mnist_cnn.pt").read_bytes()
    page = browser.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    answer, lesson = page.locator("#answer"), page.locator("#lesson")
    draw(page, UPSTROKED)
    expect(answer).to_have_text("7")
    page.mouse.up()
    page.click("#bars button >> nth=1")
    for stroke in UPSTROKED, LIKE_IT:
        draw(page, stroke)
        expect(answer).to_have_text("1")
    assert uv_run("predict.py", "--weights=data/taught.pt", cwd=folder).returncode == 0
    images, labels = import_script("train").load(folder / "data/taught", "train")
    assert images.shape == (1, 28, 28) and images.any() and labels.tolist() == [1]

    page.route("**/teach/*", lambda route: route.fulfill(status=502, body="<p>"))
    page.keyboard.press("2")
    expect(lesson).to_have_text("Error 502. Nothing was learned.")
    page.unroute("**/teach/*")
    process.terminate()
    process.communicate(timeout=60)
    page.keyboard.press("2")
    expect(page.locator("#hint")).to_contain_text("No connection")
    expect(lesson).to_contain_text("Nothing was learned")
    serve(folder, "--port", address.rpartition(":")[2])
    expect(page.locator("#answer:not(.stale)")).to_have_text("1")
    page.mouse.up()
    page.click("#forget")
    expect(page.locator("#strip button")).to_have_count(0)
    draw(page, UPSTROKED)
    expect(answer).to_have_text("7")
    assert files_below(folder / "data") == {"mnist_cnn.pt"}
    assert (folder / "data/mnist_cnn.pt").read_bytes() == weights


def test_a_slip_is_said_and_taken_back(address, page, browser):
    """Then all is exactly as before; it is taken back in another browser."""
    assert post(address, "/teach/1", ONE)[0] == 200
    probes = b"".join(digit(number).tobytes() for number in range(20))
    before = reading(address, probes)["odds"]
    strip = page.locator("#strip button")
    draw(page, STROKES["7"])
    for key in "Alt+2", "Control+2", "Meta+2", "1":
        expect(strip).to_have_count(1)
        page.keyboard.press(key)
    expect(page.locator("#lesson")).to_contain_text("It was 100% sure of a 7. MNIST ")
    assert reading(address, probes)["odds"] != before
    other = browser.new_page()
    other.goto(address)
    other.click("#strip button >> nth=0")
    expect(other.locator("#strip button")).to_have_count(1)
    assert reading(address, probes)["odds"] == before
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(strip).to_have_count(1)


def test_a_full_disk(serve, folder):
    """What cannot be written is not learned, and what was there stays readable."""
    process, address = serve(folder)
    assert post(address, "/teach/1", ONE)[0] == 200
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    server = int("".join(file.read_text() for file in tasks))
    free = resource.prlimit(server, resource.RLIMIT_FSIZE, (1000, -1))
    status, text = post(address, "/teach/7", SEVEN)
    assert status == 400 and "too large" in text, text
    resource.prlimit(server, resource.RLIMIT_FSIZE, free)
    assert len(reading(address)["lessons"]) == 1
    assert len(torch.load(folder / "data/taught.pt")["lessons"]) == 1
    images, labels = import_script("train").load(folder / "data/taught", "train")
    assert len(images) == len(labels) == 1
    assert post(address, "/teach/7", SEVEN)[0] == 200


# %% HTTP and the command line
FOREIGN = {"Origin": "http://example.com"}
PROXY = {"Origin": "https://hub.example.com", "Sec-Fetch-Site": "same-origin"}
REQUESTS = {
    "proxy": (200, {"headers": PROXY}),
    "twenty": (200, {"body": SEVEN * 20}),
    "host": (400, {"headers": {"Host": "example.com"}}),
    "origin": (403, {"headers": FOREIGN}),
    "port": (403, {"headers": {"Origin": "http://127.0.0.1:1"}}),
    "site": (403, {"headers": {"Sec-Fetch-Site": "same-site"}}),
    "teach origin": (403, {"path": "/teach/7", "headers": FOREIGN}),
    "forget origin": (403, {"path": "/forget", "headers": FOREIGN}),
    "long": (413, {"body": SEVEN * 21}),
    "short": (400, {"body": SEVEN[1:]}),
    "teach 10": (400, {"path": "/teach/10"}),
}


@pytest.mark.parametrize(("status", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests(address, status, request_):
    assert post(address, **{"body": SEVEN} | request_)[0] == status
    assert reading(address)["lessons"] == []


def test_for_phones_in_the_room(serve, trained):
    _, address = serve(trained.folder, "--host", "0.0.0.0")
    assert not address.startswith("http://127.")
    name = f"{socket.gethostname()}:{address.rpartition(':')[2]}"
    for host, origin, status in (name, name, 200), ("x", "x", 400), (name, "x", 403):
        headers = {"Host": host, "Origin": f"http://{origin}"}
        assert post(address, headers=headers)[0] == status


ERRORS = {
    "--taught=data/mnist_cnn.pt": "data/mnist_cnn.pt has no lessons",
    "--taught=data/sample.pt": "data/sample/MNIST/raw has other digits",
    "--host=192.0.2.1": "cannot listen: ",
}


@pytest.mark.parametrize("option", ERRORS)
def test_errors(folder, monkeypatch, option):
    monkeypatch.chdir(folder)
    draw = import_script("draw")
    with pytest.raises(draw.Error, match=ERRORS[option]):
        draw.main(["--no-browser", option])


def test_one_off_run_from_a_url_and_ctrl_c(server, serve, trained, tmp_path):
    server.answers["/draw.py"] = (REPO / "draw.py").read_bytes()
    server.answers["/mnist_cnn.pt"] = trained.weights.read_bytes()
    script, weights = f"{server.url}draw.py", f"{server.url}mnist_cnn.pt"
    process, address = serve(tmp_path, "--weights", weights, script=script)
    assert "<title>Draw a digit</title>" in post(address, "/", method="GET")[1]
    assert reading(address, SEVEN)["odds"][0][7] > 0.9
    status, text = post(address, "/teach/7", SEVEN)
    assert status == 400 and "no digits to replay" in text
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and not list(tmp_path.iterdir())
