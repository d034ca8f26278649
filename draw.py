#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#   "starlette==1.10.0",
#   "torch==2.15.0",
#   "uvicorn==0.54.0",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Draw a digit in the browser, see it read stroke by stroke, and teach the network.

    uv run draw.py                        for this machine, at http://127.0.0.1:8000
    uv run draw.py --host 0.0.0.0         for all in the room; there is no password
    uv run train.py --also data/taught    learns for good what you taught

data/taught.pt has the lessons and a network that knows them; a later start reads it.
"""

import argparse
import copy
import io
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
import warnings
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":  # not where a notebook or a test imports this file
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # it is not needed
import torch
import torch.nn.functional as F
import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse
from torch import Tensor, nn


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers, with 225,034 parameters.

    It takes (N, 1, 28, 28) float32 from `normalize` and gives (N, 10) logits.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 5 * 5, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        # relu comes after pooling: the same result from a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def normalize(images: Tensor) -> Tensor:
    """Standardize (N, 28, 28) uint8 as MNIST's, to (N, 1, 28, 28) float32."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


def load_weights(
    source: str, network: type = SimpleCNN, made_by: str = "train.py"
) -> nn.Module:
    """Return the network with the weights in a file or at a URL; raises Error.

    They are a state_dict, alone or in a checkpoint.
    """
    model, file = network(), os.path.expanduser(source)
    try:
        if "://" in source:
            with urllib.request.urlopen(source, timeout=10) as answer:
                file = io.BytesIO(answer.read())
        state = torch.load(file, "cpu", weights_only=True)
        for key in ("state_dict", "model_state_dict", "model"):
            state = state.get(key, state)
        # DistributedDataParallel and torch.compile prefix the names.
        prefix = re.compile(r"^((module|_orig_mod)\.)+")
        model.load_state_dict({prefix.sub("", name): x for name, x in state.items()})
    except OSError as error:
        advice = f"`uv run {made_by}` makes them"
        raise Error(f"no weights in {source} ({error}); {advice}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[:2])
        reason = f"{source} does not fit {network.__name__} in this script: {reason}"
        raise Error(reason) from None
    except Exception:  # torch's own message would advise to run a file's code
        advice = "make it with torch.save(model.state_dict(), path)"
        raise Error(f"{source} is not a state_dict; {advice}") from None
    if not all(p.isfinite().all() for p in model.parameters()):
        raise Error(f"{source} is not finite; train again, with a smaller --lr")
    return model.eval().to(memory_format=torch.channels_last)  # twice as fast


# %% Teaching: gradient descent of the linear layers; 1 ms a step, 10 with convolutions
LR = 0.04  # falls to 0
STEPS = 20  # times the square root of the number of lessons
TAUGHT, REPLAYED = 8, 56  # lessons and digits of MNIST in a batch
DIGITS = 5000  # of MNIST:
TESTED = 1000  # these measure the accuracy, the others are replayed lest it forgets
SURE = 0.95  # a lesson against such an answer may be a slip,
COSTLY = 0.5  # and one that costs so many points of accuracy, too
REPLAY = Path("data/mnist/MNIST/raw"), Path("data/sample/MNIST/raw")
FILES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def to_images(data: bytes) -> Tensor:
    """(N, 28, 28) uint8; raises Error."""
    if len(data) % 784:
        raise Error(f"{len(data)} bytes are no 28×28 images")
    return torch.tensor([*data]).byte().view(len(data) // 784, 28, 28)


@torch.no_grad()
def convolve(model: SimpleCNN, images: Tensor) -> Tensor:
    """What the linear layers get of (N, 28, 28) uint8: (N, 1600) float32."""
    x = F.relu(F.max_pool2d(model.conv1(normalize(images)), 2))
    return F.relu(F.max_pool2d(model.conv2(x), 2)).flatten(1)


class Pupil:
    """A network and its lessons: labels by the 784 bytes of a drawing.

    It learns anew from all lessons: nothing drifts, one taken back leaves no trace.
    """

    def __init__(self, model: SimpleCNN, path: Path):
        self.untaught = self.model = model
        folder = path.with_suffix("") / "MNIST/raw"
        self.paths = path, *(folder / name for name in FILES)
        if self.paths[1].exists() and not path.exists():
            raise Error(f"{folder} has other digits; name another --taught")
        self.lessons, self.accuracy = {}, 0
        self.features = self.labels = None  # of MNIST
        try:
            if path.exists():
                self.lessons = torch.load(path, weights_only=True)["lessons"]
        except Exception:
            raise Error(f"{path} has no lessons; name another --taught") from None
        for folder in REPLAY:
            if (folder / FILES[1]).exists():
                images, labels = ((folder / name).read_bytes() for name in FILES)
                parts = to_images(images[16:][: 784 * DIGITS]).split(500)
                self.features = torch.cat([convolve(model, part) for part in parts])
                self.labels = torch.tensor([*labels[8:][:DIGITS]])
                self.model, self.accuracy = self.learn(self.lessons)
                break

    def learn(self, lessons: dict[bytes, int]) -> tuple[SimpleCNN, float]:
        """A network that knows these lessons alone, and its accuracy in percent."""
        if self.labels is None:
            raise Error("no digits to replay in data/mnist or data/sample")
        torch.manual_seed(0)  # the same lessons make the same network
        model = copy.deepcopy(self.untaught)
        layers = nn.Sequential(model.fc1, nn.ReLU(), model.fc2)
        features = convolve(model, to_images(b"".join(lessons)))
        labels = torch.tensor([*lessons.values()])
        steps = round(STEPS * len(lessons) ** 0.5)
        for step in range(steps):
            new = torch.randint(len(lessons), [TAUGHT])
            old = torch.randint(TESTED, len(self.labels), [REPLAYED])
            x = torch.cat([features[new], self.features[old]])
            y = torch.cat([labels[new], self.labels[old]])
            layers.zero_grad()
            F.cross_entropy(layers(x), y).backward()
            with torch.no_grad():
                for p in layers.parameters():
                    p -= LR * (1 - step / steps) * p.grad
        right = layers(self.features[:TESTED]).argmax(1) == self.labels[:TESTED]
        return model, 100 * right.float().mean().item()

    def save(self, model: SimpleCNN, lessons: dict[bytes, int]) -> None:
        """Write all files, the last two in MNIST's format; none if the disk is full."""
        checkpoint, n = io.BytesIO(), len(lessons).to_bytes(4)
        torch.save({"state_dict": model.state_dict(), "lessons": lessons}, checkpoint)
        images = bytes([0, 0, 8, 3, *n, 0, 0, 0, 28, 0, 0, 0, 28]) + b"".join(lessons)
        labels = bytes([0, 0, 8, 1, *n, *lessons.values()])
        self.paths[1].parent.mkdir(parents=True, exist_ok=True)
        contents = checkpoint.getvalue(), images, labels
        for path, content in zip(self.paths, contents, strict=True):
            path.with_suffix(".new").write_bytes(content)
        for path in self.paths:
            path.with_suffix(".new").replace(path)
            if not lessons:
                path.unlink()

    @torch.no_grad()
    def read(self, pixels: bytes, known: str = "") -> dict:
        """Ten probabilities for each 784 pixels; the lessons unless they are known."""
        odds = self.model(normalize(to_images(pixels))).softmax(1).tolist()
        version = str(hash(tuple(self.lessons.items())))
        if version == known:
            return {"odds": odds}
        lessons = [[label, *image] for image, label in self.lessons.items()]
        return {"odds": odds, "version": version, "lessons": lessons}

    def teach(self, pixels: bytes, label: int) -> dict:
        """Learn one digit; a note says what that brought, and if it may be a slip."""
        if len(pixels) != 784 or label > 9:
            raise Error("a lesson is one digit")
        [odds] = self.read(pixels)["odds"]
        digit, before, note = odds.index(max(odds)), self.accuracy, ""
        if digit != label and max(odds) > SURE:
            note = f"It was {max(odds):.0%} sure of a {digit}. "
        change = self.change(self.lessons | {pixels: label})
        if note or before - self.accuracy > COSTLY:
            change += ". Press its picture to take it back."
        return {"note": note + change}

    def forget(self, pixels: bytes) -> dict:
        """Take back a lesson, or all of them where there are no pixels."""
        kept = {x: label for x, label in self.lessons.items() if x != pixels}
        return {"note": self.change(kept if pixels else {})}

    def change(self, lessons: dict[bytes, int]) -> str:
        model, accuracy = self.learn(lessons)
        self.save(model, lessons)
        change = f"MNIST {self.accuracy:.1f} → {accuracy:.1f} %"
        self.model, self.lessons, self.accuracy = model, lessons, accuracy
        return change


# %% Page
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Draw a digit</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<style>
:root { font: clamp(16px, 2.3vmin, 30px) system-ui; color-scheme: light dark }
body { margin: .5rem; user-select: none; touch-action: manipulation }
main { display: flex; flex-direction: column; gap: .5rem; height: calc(100svh - 1rem) }
section { display: grid; grid: auto auto auto 1fr / minmax(0, 1fr); gap: .5rem }
@media (orientation: landscape) {
  main { flex-direction: row }
  section { flex: 0 0 22rem }
}
div { display: flex; gap: .4rem; align-items: center }
svg {
  flex: 1; min-height: 11rem; background: #8882; touch-action: none;
  fill: none; stroke: currentcolor; stroke-width: 2.5; stroke-linecap: round;
}
button {
  min-height: 44px; border: 0; border-radius: .4rem; font: inherit;
  background: linear-gradient(#2f7cf690 0 0) 0 / 0 no-repeat #8883;
}
canvas { height: 2rem; vertical-align: middle; image-rendering: pixelated }
#seen { height: 4rem }
#answer { flex: 1; line-height: 4rem; text-align: center }
i, .stale { color: GrayText }
#bars { display: grid; grid: auto / repeat(5, 1fr); align-items: stretch }
#notes { min-height: 4rem; margin: 0 }
#strip { flex: 1; overflow-x: auto }
#strip button { flex: none }
</style>
<main><svg id="drawing" viewBox="-50 -50 100 100" role="img" aria-label="Drawing"></svg>
<section>
<div><button id="undo">Undo</button><button id="clear">Clear</button></div>
<div><b id="answer"></b>What it sees
  <canvas id="seen" role="img" aria-label="28 × 28 pixels"></canvas></div>
<div id="bars"></div>
<p id="notes" role="status"><span id="hint"></span><br><span id="lesson"></span></p>
<div>Taught:<div id="strip"></div>
  <button id="forget">Forget all</button></div>
</section></main>
<script>
const {drawing, undo, clear, answer, seen, bars, hint, lesson, strip, forget}
  = Object.fromEntries([...document.querySelectorAll("[id]")].map(x => [x.id, x]))
const DOUBT = 0.6  // a digit less probable than this gets a question mark
const PEN = 2.5  // pixels of the image; 2 and 3.25 do as well
const DOT = 2.5  // percent of the drawing; what is smaller is no digit
const {max, min, hypot, floor, round} = Math
let busy, again, version

function toImages() {  // strokes whose columns overlap are one digit
  const box = line => line.getBBox(), groups = []
  const lines = [...drawing.children].sort((a, b) => box(a).x - box(b).x)
  const tallest = max(...lines.map(line => box(line).height))
  let edge = -Infinity
  for (const line of lines) {
    if (box(line).x > edge) groups.push([])
    groups.at(-1).push(line)
    edge = max(edge, box(line).x + box(line).width + min(DOT, tallest / 8))
  }
  return tallest ? groups.flatMap(group => toImage(group, tallest)) : []
}
// As MNIST's (LeCun et al. 1998). What is read from a canvas, some browsers change.
function toImage(lines, tallest) {
  const dots = lines.flatMap(line => {
    const length = line.getTotalLength(), n = round(80 * length / tallest)
    return Array.from({length: n}, (_, i) => line.getPointAtLength(length * i / n))
  })
  const xs = dots.map(dot => dot.x), ys = dots.map(dot => dot.y)
  const size = places => max(...places) - min(...places)
  const least = max(DOT, tallest / 4, size(xs) / 5)
  if (!(size(ys) > least)) return []  // a dot or a dash
  const scale = (20 - PEN) / max(size(xs), size(ys))
  const start = places => places.reduce((a, b) => a + b) / dots.length - 14 / scale
  const left = start(xs), top = start(ys)  // the centre of mass is at 14, 14
  return [Array.from({length: 784}, (_, i) => {
    const x = left + i % 28 / scale, y = top + floor(i / 28) / scale
    const nearest = min(...dots.map(dot => hypot(dot.x - x, dot.y - y)))
    return 255 * max(0, min(1, PEN / 2 + 0.5 - scale * nearest))
  })]
}
function paint(canvas, image) {
  canvas.width = canvas.height = 28
  if (!image) return
  const rgba = Uint8ClampedArray.from(image.flatMap(grey => [grey, grey, grey, 255]))
  canvas.getContext("2d").putImageData(new ImageData(rgba, 28), 0, 0)
}

drawing.onpointerdown = event => {
  if (!event.isPrimary || event.buttons !== 1) return  // a second finger, no press
  drawing.setPointerCapture(event.pointerId)  // a stroke may leave the drawing
  drawing.insertAdjacentHTML("beforeend", `<polyline points="${place(event)}"/>`)
  drawing.onpointermove(event)  // a dot has two equal ends
}
drawing.onpointermove = event => {
  if (!drawing.hasPointerCapture(event.pointerId)) return
  const line = drawing.lastChild  // none after Undo
  line?.setAttribute("points", `${line.getAttribute("points")} ${place(event)}`)
  look()
}
function place({clientX, clientY}) {
  const point = new DOMPoint(clientX, clientY)
  const {x, y} = point.matrixTransform(drawing.getScreenCTM().inverse())
  return `${x},${y}`
}
undo.onclick = () => { drawing.lastChild?.remove(); look() }
clear.onclick = () => { drawing.replaceChildren(); look() }
forget.onclick = () => confirm("Forget all that was taught?") && change("forget", [])
onkeydown = ({key, altKey, ctrlKey, metaKey, repeat}) => {
  if (!altKey && !ctrlKey && !metaKey && !repeat) bars.children[key]?.click()
}
for (let digit = 0; digit < 10; digit++) {
  bars.innerHTML += `<button onclick="teach(${digit})" title="Key ${digit}"
    aria-label="Teach ${digit}">${digit}<br><small></small></button>`
}
function teach(digit) {
  const images = toImages()
  if (images.length === 1) change(`teach/${digit}`, images[0])
  else lesson.textContent = "To teach, draw one digit."
}
async function change(path, image) {
  lesson.textContent = "Learning …"
  try { lesson.textContent = (await ask(path, image)).note }
  catch (error) { lesson.textContent = `${error}. Nothing was learned.` }
  look()
}
async function ask(path, bytes) {
  const options = {method: "POST", body: Uint8Array.from(bytes)}
  const answer = await fetch(path, options).catch(() => { throw "No connection" })
  const json = await answer.json().catch(() => { throw `Error ${answer.status}` })
  if (json.error) throw json.error
  return json
}
function list(lessons) {  // the newest first
  strip.replaceChildren(...lessons.reverse().map(([digit, ...image]) => {
    const thumb = document.createElement("button")
    thumb.innerHTML = `<canvas></canvas> ${digit}`
    thumb.title = `Take back this ${digit}`
    thumb.onclick = () => change("forget", image)
    paint(thumb.firstChild, image)
    return thumb
  }))
}
function show(odds, images) {  // returns what there is to say
  const best = odds.map(row => max(...row)), doubtful = best.indexOf(min(...best))
  const digits = best.map((p, i) => odds[i].indexOf(p) + (p < DOUBT ? "?" : ""))
  const text = digits.join("")
  answer.innerHTML = digits.map(x => x[1] ? `<i>${x}</i>` : x).join("")
  answer.style.fontSize = `${min(4, 12 / text.length)}rem`
  paint(seen, images[doubtful])
  for (const [digit, bar] of [...bars.children].entries()) {
    const percent = round(100 * (odds[doubtful]?.[digit] ?? 0)) + "%"
    bar.style.backgroundSize = bar.lastChild.textContent = percent
  }
  if (digits[1]) return `I read ${text}. Shown is digit ${doubtful + 1}, in most doubt.`
  if (text) return `I read ${text}. Wrong? Press the right digit.`
  return drawing.lastChild ? "A dot or a dash is no digit." : "Draw a digit."
}
async function look() {  // one reading at a time, of the newest drawing
  again = busy
  if (busy) return
  busy = true
  let text
  try {
    const images = toImages(), reading = await ask(`read/${version}`, images.flat())
    if (reading.lessons) list(reading.lessons)
    version = reading.version ?? version
    text = show(reading.odds, images)
    answer.className = ""
  } catch (error) {
    text = `${error}, trying again …`
    answer.className = "stale"
    setTimeout(look, 1000)
  }
  if (hint.textContent !== text) hint.textContent = text  // read aloud once
  busy = false
  if (again) look()
}
onfocus = document.onvisibilitychange = look
look()
</script>"""


# %% Server
def is_own(headers: Mapping) -> bool:
    """Whether draw.py's page or no page asks; behind a proxy Host may be another."""
    if "sec-fetch-site" in headers:  # by browsers, over https or on this machine
        return headers["sec-fetch-site"] == "same-origin"
    return headers.get("origin", "").split("//")[-1] in ("", headers["host"])


def make_app(pupil: Pupil, hosts: list[str]) -> Starlette:
    """The page at /, which posts 784 bytes a digit."""
    app = Starlette(max_body_size=20 * 784)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_route("/", lambda request: HTMLResponse(PAGE))

    def post(path, answer):
        async def respond(request):  # one after another: a lesson takes 0.04 to 0.3 s
            if not is_own(request.headers):
                return JSONResponse({"error": "not draw.py's page"}, 403)
            try:
                return JSONResponse(answer(await request.body(), **request.path_params))
            except (Error, OSError) as error:
                return JSONResponse({"error": str(error)}, 400)

        app.add_route(path, respond, methods=["POST"])

    post("/read/{known}", pupil.read)
    post("/teach/{label:int}", pupil.teach)
    post("/forget", pupil.forget)
    return app


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", default="data/mnist_cnn.pt", help="file or URL")
    add("--taught", type=Path, default="data/taught.pt", help="keeps the lessons")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets in all who reach it")
    add("--port", type=int, default=8000, help="0 is any free one")
    add("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # more wait for each other: 44 ms on a busy machine, not 2
    pupil = Pupil(load_weights(args.weights), args.taught)
    try:
        listener = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as error:
        raise Error(f"cannot listen: {error}; name another --port") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # saves 42 ms
    host, port = listener.getsockname()
    hosts = [host, "127.0.0.1", "localhost"]
    if host == "0.0.0.0":
        name = socket.gethostname()
        hosts += [name, f"{name}.local"]
        with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as outward:
            outward.connect(("192.0.2.1", 9))  # sends nothing
            hosts.insert(0, outward.getsockname()[0])
    address = f"http://{hosts[0]}:{port}"
    print(f"Draw a digit on {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser and "SSH_CONNECTION" not in os.environ:
        # In a thread, as some browsers return when they are closed.
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    app = make_app(pupil, hosts)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    try:
        main()
    except (Error, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
