"""draw.py in Debian's Chromium, over HTTP and on the command line."""

import http.client
import io
import json
import runpy
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ENV, OFFLINE, REPO, SAMPLE, files_below, import_script, uv_run
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {
    "viewport": {"width": 390, "height": 664},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}
STROKES = {  # in percent of the drawing's side
    "7": [(30, 20), (70, 20), (60, 40), (45, 80)],
    "1": [(50, 15), (50, 80)],
    "0": [
        *[(50, 20), (35, 30), (30, 50), (35, 70), (50, 80)],
        *[(65, 70), (70, 50), (65, 30), (50, 20)],
    ],
    "4": [(20, 20), (10, 55), (38, 55), (28, 55), (28, 35), (28, 80)],
    "2": [(60, 35), (72, 20), (84, 35), (58, 78), (90, 78)],
}
# 1s with ever flatter upstrokes; people would take the last for a 7
UPSTROKED = [[(32, 20 + y), (60, 20), (60, 80)] for y in (26, 22, 18, 15, 12, 9, 6, 3)]
expect.set_options(timeout=60_000)


# Helpers
def start(script, weights, folder, port=0) -> tuple[subprocess.Popen, str]:
    """draw.py, and its address."""
    command = ["uv", "run", script, "--weights", weights, "--port", port]
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


def to_bytes(image: Image.Image, format="PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def picture(*strokes, size=(560, 560), format="PNG", mode="L") -> bytes:
    """What the page posts after these strokes."""
    image = Image.new(mode, size, "white")
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        places = [(x * size[0] / 100, y * size[1] / 100) for x, y in stroke]
        pen.line(places, "black", size[0] // 14, "curve")
    return to_bytes(image, format)


def points(page, stroke: list) -> list[tuple[float, float]]:
    box = page.locator("#drawing").bounding_box()
    scale = box["width"] / 100
    return [(box["x"] + x * scale, box["y"] + y * scale) for x, y in stroke]


def draw(page, stroke: list) -> None:
    """All of the stroke; the button stays down."""
    first, *others = points(page, stroke)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=4)


def draw_anew(page, *strokes: list) -> None:
    page.click("#clear")
    for stroke in strokes:
        draw(page, stroke)
        page.mouse.up()


def is_white(page, place: tuple) -> bool:
    """Of a place on the drawing, as `points` gives them."""
    box, (x, y) = page.locator("#drawing").bounding_box(), place
    x, y = ((v - box[side]) / box["width"] * 560 for v, side in ((x, "x"), (y, "y")))
    pixel = f"drawing.getContext('2d').getImageData({x}, {y}, 1, 1).data[0]"
    return page.evaluate(pixel) == 255


@pytest.fixture
def serve():
    """Starts draw.py as `start` does; in the end it is stopped."""
    processes = []

    def serve(*arguments) -> tuple[subprocess.Popen, str]:
        process, address = start(*arguments)
        processes.append(process)
        return process, address

    yield serve
    for process in processes:
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
    assert post(shared_server, "/forget")[0] == 200
    return shared_server


@pytest.fixture
def browser():
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no Chromium here; apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=FLAGS)


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
    expect(page.locator("#note")).to_contain_text("Wrong?")
    before = page.evaluate(place)
    yield page
    assert page.evaluate(place) == before
    assert [text for text in errors if "400 (Bad Request)" not in text] == []
    assert all(url.startswith((address, "data:")) for url in urls)


# Drawing
@pytest.mark.parametrize(
    ("digit", "undo"),
    [("7", "Control+z"), ("1", "#undo"), ("0", "Escape"), ("1", "#clear")],
)
def test_answer_before_pen_up_then_undo_and_clear(page, digit, undo):
    draw(page, STROKES[digit])
    expect(page.locator("#answer")).to_have_text(digit)
    shown = page.locator("#bars span").all_inner_texts()
    percents = [int(text.split()[0]) for text in shown]
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


def test_fingers(page):
    """A second finger draws nothing; a touch that is taken away ends the stroke.

    A tap is a dot, and no 0.
    """
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
    assert is_white(page, elsewhere) and not is_white(page, first)
    touch("Cancel")
    page.click("#clear")
    expect(page.locator("#answer")).to_have_text("")
    with page.expect_response("**/read") as response:
        page.touchscreen.tap(*elsewhere)
    assert not is_white(page, elsewhere) and is_white(page, first)
    assert response.value.json()["text"] == ""


def test_one_request_at_a_time_and_no_stroke_is_lost(page):
    asked = []

    def hold_the_first(route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    page.route("**/read", hold_the_first)
    draw(page, STROKES["7"])
    frame = "new Promise(resolve => requestAnimationFrame(resolve))"
    page.evaluate(f"{frame}.then(() => {frame})")
    assert len(asked) == 1
    asked[0].continue_()
    expect(page.locator("#answer")).to_have_text("7")


def test_numbers(page):
    draw_anew(page, STROKES["4"], STROKES["2"])
    expect(page.locator("#answer")).to_have_text("42")
    page.keyboard.press("4")
    expect(page.locator("#note")).to_contain_text("one digit at a time")
    expect(page.locator("#count")).to_have_text("0")
    draw(page, STROKES["7"])
    expect(page.locator("#note")).to_contain_text("Wrong?")


def test_doubt(address, page):
    """Somewhere between a 1 and a 7, one fading in, it is unsure."""
    one, seven = (Image.open(io.BytesIO(picture(STROKES[digit]))) for digit in "17")
    for step in range(1, 128):
        body = to_bytes(Image.blend(one, seven, step / 128))
        text = post(address, body=body)[1]
        answer = json.loads(text)
        unsure = max(answer["probabilities"]) < 0.6
        assert answer["text"] == f"{answer['digit']}{'?' * unsure}"
        if unsure:
            break
    page.route("**/read", lambda route: route.fulfill(body=text))
    draw(page, STROKES["1"])
    expect(page.locator("#answer")).to_have_text(f"{answer['digit']}?")
    opacity = "x => getComputedStyle(x).opacity"
    assert float(page.locator("#answer").evaluate(opacity)) < 1


# Teaching
def test_one_lesson(serve, folder, browser):
    process, address = serve(REPO / "draw.py", "data/mnist_cnn.pt", folder)
    weights = (folder / "data/mnist_cnn.pt").read_bytes()
    texts = []
    for stroke in UPSTROKED:
        texts.append(json.loads(post(address, body=picture(stroke))[1])["text"])
    hard = UPSTROKED[next(i for i, text in enumerate(texts) if text != "1")]
    other = [(x * 0.9 + 5, y * 0.9 + 5) for x, y in hard]
    other[2] = (other[2][0] + 2, other[2][1])
    page = browser.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    answer, count = page.locator("#answer"), page.locator("#count")

    draw_anew(page, hard)
    expect(answer).not_to_have_text("")
    expect(answer).not_to_have_text("1")
    page.click("#bars button >> nth=1")
    expect(answer).to_have_text("1")
    draw_anew(page, other)
    expect(answer).to_have_text("1")
    expect(count).to_have_text("1")

    result = uv_run(
        "predict.py", "--weights", "data/taught.pt", cwd=folder, env=OFFLINE
    )
    assert result.returncode == 0, result.stderr
    images, labels = import_script("train").load(folder / "data/taught", "train")
    assert images.shape == (1, 28, 28) and images.any() and labels.tolist() == [1]
    state = torch.load(folder / "data/taught.pt")
    assert all(x.is_contiguous() for x in state.values())

    stop(process)
    draw_anew(page, hard)
    expect(page.locator("#note")).to_contain_text("No connection")
    port = address.rpartition(":")[2]
    serve(REPO / "draw.py", "data/mnist_cnn.pt", folder, port)
    expect(answer).to_have_text("1")
    page.reload()
    expect(count).to_have_text("1")

    draw_anew(page, hard)
    expect(answer).to_have_text("1")
    page.click("#forget")
    expect(count).to_have_text("0")
    expect(answer).not_to_have_text("1")
    assert files_below(folder / "data") == {"mnist_cnn.pt"}
    assert (folder / "data/mnist_cnn.pt").read_bytes() == weights


def test_keys_and_a_corrected_slip(page):
    """The same drawing is taught as ten digits in turn; the last counts."""
    draw_anew(page, UPSTROKED[4])
    for digit in "0123456789":
        page.keyboard.press(digit)
        expect(page.locator("#answer")).to_have_text(digit)
        expect(page.locator("#count")).to_have_text("1")


def test_the_page_is_live_while_it_learns(page):
    held = []
    page.route("**/teach*", lambda route: held.append(route))
    draw_anew(page, UPSTROKED[4])
    page.keyboard.press("1")
    expect(page.locator("#note")).to_contain_text("Learning")
    draw_anew(page, STROKES["7"])
    expect(page.locator("#answer")).to_have_text("7")
    held[0].continue_()
    expect(page.locator("#count")).to_have_text("1")
    expect(page.locator("#answer")).to_have_text("7")


def test_lessons_at_once(address):
    """Six pages teach at the same time, and nothing is lost."""
    pictures = [picture(stroke) for stroke in UPSTROKED[:6]]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda x: post(address, "/teach?digit=1", x), pictures))
    assert [status for status, _ in answers] == [200] * 6
    counts = [json.loads(text)["taught"] for _, text in answers]
    assert max(counts) == 6
    for body in pictures:
        assert json.loads(post(address, body=body)[1])["digit"] == 1


def test_no_digits_to_replay(serve, trained, tmp_path, browser):
    _, address = serve(REPO / "draw.py", trained.weights, tmp_path)
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("#note")).to_contain_text("no digits to replay in data/mnist")
    draw(page, STROKES["7"])
    expect(page.locator("#answer")).to_have_text("7")
    status, text = post(address, "/teach?digit=7", picture(STROKES["7"]))
    assert status == 400 and "no digits to replay" in text
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_not_learned(serve, folder):
    (folder / "data/taught.pt").mkdir()
    _, address = serve(REPO / "draw.py", "data/mnist_cnn.pt", folder)
    status, text = post(address, "/teach?digit=7", picture(STROKES["1"]))
    assert status == 500 and "taught.pt" in text
    answer = json.loads(post(address, body=picture(STROKES["1"]))[1])
    assert answer["taught"] == 0 and answer["digit"] == 1


# HTTP and the command line
SEVEN = picture(STROKES["7"])


REQUESTS = {
    "own": (200, {"headers": {"Origin": "{address}"}}),
    "hair": (200, {"body": picture(STROKES["1"], size=(1, 2000))}),
    "host": (400, {"headers": {"Host": "example.com"}}),
    "host of GET": (400, {"headers": {"Host": "a.com"}, "method": "GET"}),
    "origin": (403, {"headers": {"Origin": "http://example.com"}}),
    "port": (403, {"headers": {"Origin": "http://127.0.0.1:1"}}),
    "file": (403, {"headers": {"Origin": "null"}}),
    "teach origin": (403, {"path": "/teach?digit=7", "headers": {"Origin": "null"}}),
    "forget origin": (403, {"path": "/forget", "headers": {"Origin": "null"}}),
    "2 MB": (413, {"headers": {"Content-Length": "2000000"}, "body": b""}),
    "chunks": (413, {"body": [bytes(100_000)] * 10 + [b"."]}),
    "JPEG": (400, {"body": picture(format="JPEG")}),
    "cut": (400, {"body": SEVEN[:60]}),
    "bomb": (400, {"body": picture(size=(20_000, 20_000), mode="1")}),
    "teach JPEG": (400, {"path": "/teach?digit=7", "body": picture(format="JPEG")}),
    "teach blank": (400, {"path": "/teach?digit=7", "body": picture()}),
    "teach 10": (400, {"path": "/teach?digit=10"}),
    "teach x": (400, {"path": "/teach?digit=x"}),
    "teach none": (400, {"path": "/teach"}),
    "get read": (405, {"method": "GET"}),
    "get teach": (405, {"path": "/teach?digit=7", "method": "GET"}),
    "get forget": (405, {"path": "/forget", "method": "GET"}),
    "nowhere": (404, {"path": "/nowhere"}),
}


@pytest.mark.parametrize(("status", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests(address, status, request_):
    headers = request_.get("headers", {})
    headers = {name: value.format(address=address) for name, value in headers.items()}
    wanted = {"body": SEVEN} | request_ | {"headers": headers}
    assert post(address, **wanted)[0] == status
    assert json.loads(post(address, body=SEVEN)[1])["taught"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "none.pt"], "no weights in none.pt ("),
        (["--port", "{taken}"], "cannot listen on port {taken}"),
        (["--port", "70000"], "cannot listen on port 70000"),
        (["--taught", "damaged.pt"], "no 28×28 digits in damaged/"),
        (["--taught", "data/sample.pt"], "data/sample/MNIST/raw holds other digits"),
    ],
)
def test_errors(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    raw = folder / "damaged/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        arguments = [word.format(taken=taken) for word in arguments]
        monkeypatch.setattr("sys.argv", ["draw.py", "--no-browser", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPO / "draw.py"), run_name="__main__")
    message = stopped.value.code
    assert message.startswith("error: " + words.format(taken=taken)), message
    assert "\n" not in message


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
