"""draw.py in Debian's Chromium, over HTTP and on the command line; SCREENSHOT=1 takes data/draw.png anew."""

import http.client
import io
import os
import runpy
import shutil
import signal
import socket
import subprocess

import pytest
from conftest import ENV, REPO
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
PHONE = dict(viewport=dict(width=390, height=664), is_mobile=True, has_touch=True, device_scale_factor=2)
STROKES = {  # in percent of the drawing's side
    "7": [(30, 20), (70, 20), (60, 40), (45, 80)],
    "1": [(50, 15), (50, 80)],
    "0": [(50, 20), (35, 30), (30, 50), (35, 70), (50, 80), (65, 70), (70, 50), (65, 30), (50, 20)],
}
expect.set_options(timeout=60_000)


def start(script, weights, folder) -> tuple[subprocess.Popen, str]:
    """draw.py on a free port, and its address."""
    command = ["uv", "run", script, "--weights", weights, "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, cwd=folder, env=ENV, stdout=-1, stderr=-1, text=True)
    return process, process.stdout.readline().split()[4]


@pytest.fixture(scope="module")
def address(trained):
    process, address = start(REPO / "draw.py", trained.weights, trained.folder)
    yield address
    process.terminate()
    process.communicate()


@pytest.fixture
def page(address):
    """The page on a phone. In the end it has not moved, asked no other server, and met no error."""
    if not shutil.which("chromium"):
        pytest.skip("no Chromium here; apt-get install chromium")
    errors, urls = [], []
    place = "[scrollY, visualViewport.scale, Math.round(drawing.getBoundingClientRect().y)]"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        page = browser.new_page(**PHONE)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(address)
        expect(page.locator("#bars span")).to_have_count(10)
        before = page.evaluate(place)
        yield page
        assert page.evaluate(place) == before and not errors
        assert all(url.startswith((address, "data:")) for url in urls)


def points(page, digit: str) -> list[tuple[float, float]]:
    box = page.locator("#drawing").bounding_box()
    scale = box["width"] / 100
    return [(box["x"] + x * scale, box["y"] + y * scale) for x, y in STROKES[digit]]


def draw(page, digit: str) -> None:
    """All of the stroke; the button stays down."""
    first, *others = points(page, digit)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=4)


def test_answer_before_pen_up_then_undo_and_clear(page):
    for digit, undo in [("7", "Control+z"), ("1", "#undo"), ("0", "Escape"), ("1", "#clear")]:
        draw(page, digit)
        expect(page.locator("#answer")).to_have_text(digit)
        percents = [int(text.split()[0]) for text in page.locator("#bars span").all_inner_texts()]
        assert percents.index(max(percents)) == int(digit) and 90 < sum(percents) < 110
        if digit == "7" and os.environ.get("SCREENSHOT"):
            page.set_viewport_size(dict(width=1120, height=630))
            page.screenshot(path=REPO / "data/draw.png", scale="css")
            page.set_viewport_size(PHONE["viewport"])
        if undo[0] == "#":
            page.mouse.up()
            page.click(undo)
        else:  # what was undone does not go on
            page.keyboard.press(undo)
            page.mouse.move(*points(page, "7")[0], steps=4)
            page.mouse.up()
        expect(page.locator("#answer")).to_have_text("")


def is_white(page, place: tuple) -> bool:
    """Of a place on the drawing, as `points` gives them."""
    box, (x, y) = page.locator("#drawing").bounding_box(), place
    x, y = ((v - box[side]) / box["width"] * 560 for v, side in ((x, "x"), (y, "y")))
    return page.evaluate(f"drawing.getContext('2d').getImageData({x}, {y}, 1, 1).data[0]") == 255


def test_fingers(page):
    """A second finger draws nothing; a touch that the system takes away ends the stroke; a tap is a dot."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *fingers) -> None:
        places = [dict(x=x, y=y, id=number) for number, (x, y) in enumerate(fingers)]
        session.send("Input.dispatchTouchEvent", dict(type=f"touch{kind}", touchPoints=places))

    first, *others = points(page, "7")
    elsewhere = points(page, "1")[1]
    touch("Start", first)
    touch("Start", first, elsewhere)
    for place in others:
        touch("Move", place, elsewhere)
    expect(page.locator("#answer")).to_have_text("7")
    assert is_white(page, elsewhere) and not is_white(page, first)
    touch("Cancel")
    page.click("#clear")
    page.touchscreen.tap(*elsewhere)
    expect(page.locator("#answer")).not_to_have_text("")
    assert not is_white(page, elsewhere) and is_white(page, first)


def test_one_request_at_a_time_and_no_stroke_is_lost(page):
    asked = []

    def hold_the_first(route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    page.route("**/read", hold_the_first)
    draw(page, "7")
    page.evaluate("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    assert len(asked) == 1
    asked[0].continue_()
    expect(page.locator("#answer")).to_have_text("7")


def picture(size=(280, 280), format="PNG", mode="L") -> bytes:
    image, file = Image.new(mode, size, "white"), io.BytesIO()
    ImageDraw.Draw(image).line((0, 0, 0, size[1]), fill="black")
    image.save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(("status", "headers", "body"), [
    (200, {"Origin": "{address}"}, picture()),
    (200, {}, picture((1, 2000))),
    (400, {"Host": "example.com"}, picture()),
    (403, {"Origin": "http://example.com"}, picture()),
    (403, {"Origin": "http://127.0.0.1:1"}, picture()),
    (403, {"Origin": "null"}, picture()),
    (413, {"Content-Length": "2000000"}, b""),
    (413, {}, [bytes(100_000)] * 10 + [b"."]),
    (400, {}, picture(format="JPEG")),
    (400, {}, picture()[:60]),
    (400, {}, picture((20_000, 20_000), mode="1")),
], ids="own hair host origin port file 2MB chunks JPEG cut bomb".split())  # fmt: skip
def test_requests(address, status, headers, body):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {name: value.format(address=address) for name, value in headers.items()}
    connection.request("POST", "/read", body, headers, encode_chunked=isinstance(body, list))
    assert connection.getresponse().status == status


@pytest.mark.parametrize("arguments, words", [
    (["--weights", "none.pt"], "no weights in none.pt ("),
    (["--port", "{taken}"], "cannot listen on port {taken}"),
    (["--port", "70000"], "cannot listen on port 70000"),
])  # fmt: skip
def test_errors(trained, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(SystemExit) as stop:
        taken = listener.getsockname()[1]
        arguments = [word.format(taken=taken) for word in arguments]
        monkeypatch.setattr("sys.argv", ["draw.py", "--weights", str(trained.weights), "--no-browser", *arguments])
        runpy.run_path(str(REPO / "draw.py"), run_name="__main__")
    assert stop.value.code.startswith("error: " + words.format(taken=taken)) and "\n" not in stop.value.code


def test_one_off_run_from_a_url_and_ctrl_c_with_an_open_connection(server, trained, tmp_path):
    server.answers["/draw.py"] = (REPO / "draw.py").read_bytes()
    server.answers["/mnist_cnn.pt"] = trained.weights.read_bytes()
    process, address = start(f"{server.url}draw.py", f"{server.url}mnist_cnn.pt", tmp_path)
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/")
    assert b"<title>Draw a digit</title>" in connection.getresponse().read()
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and not list(tmp_path.iterdir())
