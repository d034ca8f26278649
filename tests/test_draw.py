"""draw.py in Debian's Chromium, over HTTP and on the command line."""

import http.client
import json
import resource
import runpy
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ENV, OFFLINE, REPO, SAMPLE, files_below, import_script, run, uv_run
from PIL import Image, ImageDraw, ImageOps
from playwright.sync_api import expect, sync_playwright

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync"
PHONE = {
    "viewport": {"width": 390, "height": 664},
    "is_mobile": True,
    "has_touch": True,
}
UP = [(50, 20), (35, 30), (30, 50), (35, 70), (50, 80)]
STROKES = {  # in percent of the drawing's shorter side
    "7": [(30, 20), (70, 20), (60, 40), (45, 80)],
    "1": [(50, 15), (50, 80)],
    "0": [*UP, *[(100 - x, y) for x, y in UP[::-1]]],
    "4": [(42, 20), (32, 55), (60, 55), (50, 55), (50, 35), (50, 80)],
    "2": [(35, 35), (47, 20), (59, 35), (33, 78), (65, 78)],
}
# 1s with ever flatter upstrokes; people would take the last for a 7
UPSTROKED = [[(32, 20 + y), (60, 20), (60, 80)] for y in (26, 22, 18, 15, 12, 9, 6, 3)]
expect.set_options(timeout=60_000)


# %% Helpers
def start(script, weights, folder, *options, port=0) -> tuple[subprocess.Popen, str]:
    """draw.py, and its address."""
    command = ["uv", "run", script, "--weights", weights, "--port", port, *options]
    command = [str(word) for word in [*command, "--no-browser"]]
    options = {"cwd": folder, "env": ENV, "stdout": -1, "stderr": -1, "text": True}
    process = subprocess.Popen(command, **options)
    return process, process.stdout.readline().split()[4]


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    process.communicate(timeout=60)


def post(address, path="/read", body=b"", headers=None, method="POST"):
    """The status and the text of the answer."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    chunked = isinstance(body, list)
    connection.request(method, path, body, headers or {}, encode_chunked=chunked)
    response = connection.getresponse()
    return response.status, response.read().decode()


def image(stroke: list) -> bytes:
    """About what the page posts after this stroke."""
    drawn = Image.new("L", (560, 560))
    places = [(x * 5.6, y * 5.6) for x, y in stroke]
    ImageDraw.Draw(drawn).line(places, "white", 50, "curve")
    drawn = ImageOps.pad(drawn.crop(drawn.getbbox()), (20, 20), Image.Resampling.BOX)
    return ImageOps.expand(drawn, 4).tobytes()


def reading(address, body: bytes = b"") -> dict:
    """Also its `text`, the digits with the best odds."""
    answer = json.loads(post(address, body=body)[1])
    digits = [str(row.index(max(row))) for row in answer["odds"]]
    return answer | {"text": "".join(digits)}


def teach(address, digit: int, stroke: list) -> tuple[int, str]:
    return post(address, "/teach", bytes([digit]) + image(stroke))


def points(page, stroke: list, size: float = 1, right: float = 0) -> list[tuple]:
    """The stroke's places on the page, `size` times as large, further right."""
    box = page.locator("#drawing").bounding_box()
    scale = size * min(box["width"], box["height"]) / 100
    x, y = box["x"] + box["width"] / 2 + right, box["y"] + box["height"] / 2
    return [(x + (a - 50) * scale, y + (b - 50) * scale) for a, b in stroke]


def draw(page, stroke: list, *place) -> None:
    """All of the stroke; the button stays down."""
    first, *others = points(page, stroke, *place)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=4)


def draw_anew(page, *strokes: list) -> None:
    page.click("#clear")
    for stroke in strokes:
        draw(page, stroke)
        page.mouse.up()


@pytest.fixture
def serve():
    """Starts draw.py as `start` does; in the end it is stopped."""
    processes = []

    def serve(*arguments, **options) -> tuple[subprocess.Popen, str]:
        processes.append(start(REPO / "draw.py", *arguments, **options))
        return processes[-1]

    yield serve
    for process, _ in processes:
        stop(process)


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with the sample and with weights of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(SAMPLE)
    shutil.copy(trained.weights, tmp_path / "data/mnist_cnn.pt")
    return tmp_path


@pytest.fixture(scope="module")
def shared_server(trained):
    process, address = start(REPO / "draw.py", trained.weights, trained.folder)
    yield address
    stop(process)


@pytest.fixture
def address(shared_server):
    """That of draw.py, which has not been taught."""
    assert post(shared_server, "/teach")[0] == 200
    return shared_server


@pytest.fixture
def browser():
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no Chromium here; apt-get install chromium")
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": FLAGS.split()}
        yield playwright.chromium.launch(**options)


@pytest.fixture
def page(address, browser):
    """The page on a phone. At last it hasn't moved, asked others, or met an error."""
    errors, urls = [], []
    place = "[scrollY, visualViewport.scale, drawing.getBoundingClientRect().y]"
    page = browser.new_page(**PHONE)
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(address)
    expect(page.locator("#hint")).to_have_text("Draw a digit.")
    before = page.evaluate(place)
    yield page
    assert page.evaluate(place) == before
    assert [text for text in errors if "status of 502" not in text] == []
    assert all(url.startswith((address, "data:")) for url in urls)


# %% Drawing
@pytest.mark.parametrize(
    ("digit", "undo"),
    [("7", "Control+z"), ("1", "#undo"), ("0", "Escape"), ("1", "#clear")],
)
def test_answer_before_pen_up_then_undo_and_clear(page, digit, undo):
    draw(page, STROKES[digit])
    expect(page.locator("#answer")).to_have_text(digit)
    shown = page.locator("#bars small").all_inner_texts()
    percents = [int(text.rstrip("%")) for text in shown]
    assert percents.index(max(percents)) == int(digit)
    assert 90 < sum(percents) < 110
    if undo[0] == "#":
        page.mouse.up()
        page.click(undo)
    else:  # what was undone does not go on
        page.keyboard.press(undo)
        page.mouse.move(*points(page, STROKES["7"])[0], steps=4)
        page.mouse.up()
    expect(page.locator("#answer")).to_have_text("")


@pytest.mark.parametrize("height", [40, 100, 500])
def test_any_size(address, browser, height):
    """The network sees it as in MNIST, the pen as wide. Nothing reads from a canvas."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script("delete CanvasRenderingContext2D.prototype.getImageData")
    page.add_init_script("delete HTMLCanvasElement.prototype.toDataURL")
    page.add_init_script("delete HTMLCanvasElement.prototype.toBlob")
    page.goto(address)
    size = height / 0.6 / page.locator("#drawing").bounding_box()["height"]
    for digit in "70421":
        page.click("#clear")
        draw(page, STROKES[digit], size)
        page.mouse.up()
        expect(page.locator("#answer")).to_have_text(digit)
    ink = torch.tensor(page.evaluate("toImages()[0]")).view(28, 28) / 255
    assert 19 <= (ink.sum(1) > 1).sum() <= 20 and 2 <= ink[14].sum() <= 3
    for mass in ink.sum(0), ink.sum(1):
        assert mass @ torch.arange(28.0) / mass.sum() == pytest.approx(14, abs=0.5)


def test_numbers_dots_and_dashes(page):
    """Five digits, 40 pixels high; a dot beside a digit is left out."""
    hint = page.locator("#hint")
    for place, digit in enumerate("71012"):
        draw(page, STROKES[digit], 0.22, 70 * (place - 2))
        page.mouse.up()
    expect(page.locator("#answer")).to_have_text("71012")
    expect(hint).to_contain_text("in most doubt")
    page.keyboard.press("4")
    expect(page.locator("#lesson")).to_contain_text("draw one digit")
    draw_anew(page, [(5, 75), (5, 76)], STROKES["7"])
    expect(page.locator("#answer")).to_have_text("7")
    for stroke in [(30, 50), (70, 51)], [(30, 50)]:
        draw_anew(page, stroke)
        expect(hint).to_have_text("A dot or a dash is no digit.")
        page.keyboard.press("4")
    expect(page.locator("#strip button")).to_have_count(0)


def test_fingers(page):
    """A second finger draws nothing; a touch that is taken away ends the stroke."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *fingers) -> None:
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(fingers)]
        event = {"type": f"touch{kind}", "touchPoints": places}
        session.send("Input.dispatchTouchEvent", event)

    first, *others = points(page, STROKES["7"])
    elsewhere = points(page, STROKES["1"])[1]
    touch("Start", first)
    touch("Start", first, elsewhere)
    for place in others:
        touch("Move", place, elsewhere)
    expect(page.locator("#answer")).to_have_text("7")
    expect(page.locator("polyline")).to_have_count(1)
    touch("Cancel")
    page.touchscreen.tap(*elsewhere)
    expect(page.locator("polyline")).to_have_count(2)


def test_one_request_at_a_time_and_no_stroke_is_lost(page):
    asked = []

    def hold_the_first(route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    page.route("**/read*", hold_the_first)
    draw(page, STROKES["7"])
    frame = "new Promise(resolve => requestAnimationFrame(resolve))"
    page.evaluate(f"{frame}.then(() => {frame})")
    assert len(asked) == 1
    asked[0].continue_()
    expect(page.locator("#answer")).to_have_text("7")


def test_doubt(page):
    """Of two digits the one in doubt is grey, and the bars are its."""
    odds = [[0, 0, 0.9, 0.1, *[0] * 6], [0, 0.55, 0, 0, 0, 0, 0, 0.45, 0, 0]]
    answer = {"odds": odds, "lessons": [], "note": "", "version": "0"}
    page.route("**/read*", lambda route: route.fulfill(json=answer))
    draw(page, STROKES["1"])
    expect(page.locator("#answer")).to_have_text("21?")
    expect(page.locator("#answer i")).to_have_text("1?")
    expect(page.locator("#bars small >> nth=7")).to_have_text("45%")
    expect(page.locator("#hint")).to_contain_text("digit 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["390×844", "320×568", "844×390", "1920×1080"])
def test_accessible(address, browser, size, scheme):
    """Nothing serious for axe-core, nothing to scroll, targets of 44 pixels."""
    width, height = map(int, size.split("×"))
    viewport = {"width": width, "height": height}
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.goto(address)
    draw_anew(page, STROKES["7"])
    page.keyboard.press("1")
    expect(page.get_by_role("button", name="Take it back")).to_be_visible()
    page.keyboard.press("7")
    found = Axe().run(page).response["violations"]
    assert [x for x in found if x["impact"] in ("serious", "critical")] == []
    sides = (
        "[document.body.parentNode.scrollWidth, document.body.parentNode.scrollHeight]"
    )
    assert page.evaluate(sides) == [width, height]
    for button in page.locator("button").all():
        assert button.bounding_box()["height"] >= 44
    expect(page.get_by_role("button", name="Teach 7")).to_be_visible()


# %% Teaching
def test_one_lesson(serve, folder, browser):
    process, address = serve("data/mnist_cnn.pt", folder)
    weights = (folder / "data/mnist_cnn.pt").read_bytes()
    hard = UPSTROKED[-1]
    other = [*[(x * 0.9 + 5, y * 0.9 + 5) for x, y in hard[:2]], (61, 77)]
    page = browser.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    answer, strip = page.locator("#answer"), page.locator("#strip button")
    draw_anew(page, hard)
    expect(answer).to_have_text("7")
    page.click("#bars button >> nth=1")
    expect(answer).to_have_text("1")
    draw_anew(page, other)
    expect(answer).to_have_text("1")
    expect(strip).to_have_count(1)

    taught = ["--weights", "data/taught.pt"]
    result = uv_run("predict.py", *taught, cwd=folder, env=OFFLINE)
    assert result.returncode == 0, result.stderr
    images, labels = import_script("train").load(folder / "data/taught", "train")
    assert images.shape == (1, 28, 28) and images.any() and labels.tolist() == [1]

    stop(process)
    draw_anew(page, hard)
    expect(page.locator("#hint")).to_contain_text("No connection")
    expect(page.locator("#answer.stale")).to_be_attached()
    page.keyboard.press("2")
    expect(page.locator("#lesson")).to_contain_text("Nothing was learned")
    serve("data/mnist_cnn.pt", folder, port=address.rpartition(":")[2])
    expect(page.locator("#answer:not(.stale)")).to_have_text("1")
    page.click("#forget")
    expect(strip).to_have_count(0)
    expect(answer).not_to_have_text("1")
    assert files_below(folder / "data") == {"mnist_cnn.pt"}
    assert (folder / "data/mnist_cnn.pt").read_bytes() == weights


def test_a_slip_is_said_and_taken_back(address, page, browser):
    """Then all is exactly as before; it is taken back in another browser."""
    assert teach(address, 1, UPSTROKED[4])[0] == 200
    probes = b"".join(image(stroke) for stroke in [*STROKES.values(), *UPSTROKED])
    before = reading(address, probes)["odds"]
    strip = page.locator("#strip button")
    draw_anew(page, STROKES["7"])
    expect(strip).to_have_count(1)
    page.keyboard.press("1")
    expect(page.locator("#lesson")).to_contain_text("It was 100% sure of a 7. MNIST ")
    assert reading(address, probes)["odds"] != before
    other = browser.new_page()
    other.goto(address)
    other.get_by_role("button", name="Take it back").click()
    expect(other.locator("#strip button")).to_have_count(1)
    assert reading(address, probes)["odds"] == before
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(strip).to_have_count(1)
    page.click("#strip button")
    expect(strip).to_have_count(0)


def test_keys_and_a_corrected_slip(page):
    """The same drawing is taught as ten digits in turn; the last counts."""
    draw_anew(page, UPSTROKED[4])
    for key in "Alt+1", "Control+1", "Meta+1":
        page.keyboard.press(key)
    for digit in "0123456789":
        page.keyboard.press(digit)
        expect(page.locator("#answer")).to_have_text(digit)
        expect(page.locator("#strip button")).to_have_count(1)


def test_a_proxys_page_is_no_lack_of_connection(page):
    draw_anew(page, STROKES["7"])
    page.route("**/teach", lambda route: route.fulfill(status=502, body="<p>"))
    page.keyboard.press("1")
    expect(page.locator("#lesson")).to_have_text("Error 502. Nothing was learned.")


def test_lessons_at_once(address):
    """Six pages teach at the same time, and nothing is lost."""
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda x: teach(address, 1, x), UPSTROKED[:6]))
    assert [status for status, _ in answers] == [200] * 6
    assert len(reading(address)["lessons"]) == 6
    assert reading(address, b"".join(map(image, UPSTROKED[:6])))["text"] == "111111"


def test_no_digits_to_replay(serve, trained, tmp_path):
    _, address = serve(trained.weights, tmp_path)
    assert reading(address, image(STROKES["7"]))["text"] == "7"
    status, text = teach(address, 7, STROKES["7"])
    assert status == 400 and "no digits to replay" in text
    assert not list(tmp_path.iterdir())


def test_a_full_disk(serve, folder):
    """What cannot be written is not learned, and what was there stays readable."""
    process, address = serve("data/mnist_cnn.pt", folder)
    assert teach(address, 1, UPSTROKED[0])[0] == 200
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    server = int("".join(file.read_text() for file in tasks))
    free = resource.prlimit(server, resource.RLIMIT_FSIZE, (1000, -1))
    status, text = teach(address, 1, UPSTROKED[1])
    assert status == 500 and "too large" in text, text
    resource.prlimit(server, resource.RLIMIT_FSIZE, free)
    assert len(reading(address)["lessons"]) == 1
    assert len(torch.load(folder / "data/taught.pt")["lessons"]) == 1
    images, labels = import_script("train").load(folder / "data/taught", "train")
    assert len(images) == len(labels) == 1
    assert teach(address, 1, UPSTROKED[1])[0] == 200


# %% HTTP and the command line
SEVEN = image(STROKES["7"])
FOREIGN = {"Origin": "http://example.com"}
PROXY = {"Origin": "https://hub.example.com", "Sec-Fetch-Site": "same-origin"}
REQUESTS = {
    "own": (200, {"headers": {"Origin": "http://{host}"}}),
    "https": (200, {"headers": {"Origin": "https://{host}"}}),
    "proxy": (200, {"headers": PROXY}),
    "nothing": (200, {"body": b""}),
    "twenty": (200, {"body": SEVEN * 20}),
    "host": (400, {"headers": {"Host": "example.com"}}),
    "host of GET": (400, {"headers": {"Host": "a.com"}, "method": "GET", "path": "/"}),
    "origin": (403, {"headers": FOREIGN}),
    "port": (403, {"headers": {"Origin": "http://127.0.0.1:1"}}),
    "file": (403, {"headers": {"Origin": "null"}}),
    "site": (403, {"headers": {"Sec-Fetch-Site": "same-site"}}),
    "teach origin": (403, {"path": "/teach", "headers": FOREIGN}),
    "long": (413, {"body": SEVEN * 21}),
    "chunks": (413, {"body": [bytes(7840)] * 2 + [b"."]}),
    "short": (400, {"body": SEVEN[1:]}),
    "teach short": (400, {"path": "/teach"}),
    "teach blank": (400, {"path": "/teach", "body": bytes(785)}),
    "teach 11": (400, {"path": "/teach", "body": bytes([11]) + SEVEN}),
    "get read": (405, {"method": "GET"}),
    "get teach": (405, {"path": "/teach", "method": "GET"}),
    "nowhere": (404, {"path": "/nowhere"}),
}


@pytest.mark.parametrize(("status", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests(address, status, request_):
    headers, host = request_.get("headers", {}), address.removeprefix("http://")
    headers = {name: value.format(host=host) for name, value in headers.items()}
    wanted = {"body": SEVEN} | request_ | {"headers": headers}
    assert post(address, **wanted)[0] == status
    assert reading(address)["lessons"] == []


def test_behind_a_proxy_with_a_path(address, browser):
    page = browser.new_page()
    start = "http://hub.example.com/user/draw/"

    def forward(route) -> None:
        rest = route.request.url.removeprefix(start)
        route.fulfill(response=route.fetch(url=f"{address}/{rest}", headers=PROXY))

    page.route(f"{start}**", forward)
    page.goto(start)
    draw(page, STROKES["7"])
    expect(page.locator("#answer")).to_have_text("7")


def test_for_phones_in_the_room(serve, trained):
    """It is reached by an address of this machine and by its name."""
    _, address = serve(trained.weights, trained.folder, "--host", "0.0.0.0")
    name = f"{socket.gethostname()}:{address.rpartition(':')[2]}"
    assert not address.startswith("http://127.")
    for host, status in (name, 200), (name + "x", 400), ("example.com", 400):
        assert post(address, headers={"Host": host})[0] == status
    assert post(address, headers=FOREIGN)[0] == 403


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "none.pt"], "no weights in none.pt ("),
        (["--port", "{taken}"], "cannot listen: "),
        (["--port", "70000"], "cannot listen: "),
        (["--host", "192.0.2.1"], "cannot listen: "),
        (["--taught", "data/mnist_cnn.pt"], "data/mnist_cnn.pt has no lessons"),
        (["--taught", "data/sample.pt"], "data/sample.pt has no lessons"),
    ],
)
def test_errors(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        arguments = [word.format(taken=taken) for word in arguments]
        monkeypatch.setattr("sys.argv", ["draw.py", "--no-browser", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPO / "draw.py"), run_name="__main__")
    message = stopped.value.code
    assert message.startswith("error: " + words), message
    assert "\n" not in message


def test_ctrl_c_during_the_start(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), 2)")
    env = ENV | {"PYTHONPATH": str(tmp_path)}
    result = run("uv", "run", REPO / "draw.py", cwd=tmp_path, env=env)
    assert result.returncode in (-2, 130) and "Traceback" not in result.stderr


def test_one_off_run_from_a_url_and_ctrl_c_with_an_open_connection(
    server, trained, tmp_path
):
    server.answers["/draw.py"] = (REPO / "draw.py").read_bytes()
    server.answers["/mnist_cnn.pt"] = trained.weights.read_bytes()
    urls = f"{server.url}draw.py", f"{server.url}mnist_cnn.pt"
    process, address = start(*urls, tmp_path)
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/")
    assert b"<title>Draw a digit</title>" in connection.getresponse().read()
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and not list(tmp_path.iterdir())
