#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pillow==13.0.0",
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

uv run draw.py                        opens http://127.0.0.1:8000, for this machine
uv run train.py --also data/taught    learns for good what you taught
"""

import argparse
import asyncio
import copy
import gzip
import io
import os
import re
import shutil
import socket
import struct
import sys
import threading
import urllib.request
import warnings
import webbrowser
from pathlib import Path

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # it is not needed
import torch
import torch.nn.functional as F
import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse
from torch import Tensor, nn


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Model
class SimpleCNN(nn.Module):
    """Two convolutions, two linear layers: (N, 1, 28, 28) float32 to (N, 10) logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(1600, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        # relu after pooling: the same, a quarter of the work
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32, by MNIST's mean and deviation."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


def load_weights(source: str) -> SimpleCNN:
    """The network, in eval mode, with the state_dict in a file or at a URL.

    Raises Error where none fits.
    """
    model = SimpleCNN()
    file = source
    try:
        if "://" in source:
            file = io.BytesIO(urllib.request.urlopen(source, timeout=10).read())
        state = torch.load(file, map_location="cpu", weights_only=True)  # runs no code
        model.load_state_dict(state)
    except OSError as error:
        advice = "`uv run train.py` makes them"
        raise Error(f"no weights in {source} ({error}); {advice}") from None
    except Exception as error:  # torch's own words would advise to run its code
        reason = "no plain state_dict" if "weights_only" in str(error) else error
        raise Error(f"{source} does not fit SimpleCNN: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise Error(f"the weights in {source} are not finite; train again")
    return model.eval()


def load(data_dir: Path, split: str) -> tuple[Tensor, Tensor]:
    """(N, 28, 28) uint8 images and (N,) uint8 labels of "train" or "test".

    Raises Error on bad data.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    contents = []
    try:
        for kind in "images-idx3", "labels-idx1":
            path = data_dir / f"MNIST/raw/{prefix}-{kind}-ubyte"
            packed = path.with_name(path.name + ".gz")
            content = path if path.exists() else gzip.open(packed)
            content = path.read_bytes() if path.exists() else content.read()
            contents.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        images, labels = contents[0][16:].view(-1, 28, 28), contents[1][8:]
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
    except Exception as error:
        raise Error(f"no 28×28 digits in {data_dir}: {error}") from None
    return images, labels


# %% Drawing
SMALLEST = 1 / 7  # of the drawing's side: a tap's dot is half of that, and no digit
CENTRE = 14  # where the centre of mass goes, of 28 pixels
SURE = 0.6  # a digit less probable than this gets a question mark


def to_mnist(ink: Image.Image) -> Tensor:
    """A digit's crop, white on black, to (28, 28) uint8 as in MNIST.

    The longer side is 20 pixels, the centre of mass in the middle (LeCun et al. 1998).
    """
    w, h = (max(1, round(20 * side / max(ink.size))) for side in ink.size)
    ink = ink.resize((w, h), Image.Resampling.BOX)
    ink = torch.frombuffer(bytearray(ink.tobytes()), dtype=torch.uint8).view(h, w)
    mass = ink / ink.sum()  # its sums over rows and columns weigh their places
    y, x = mass.sum(1) @ torch.arange(float(h)), mass.sum(0) @ torch.arange(float(w))
    top = int((CENTRE - y).round().clamp(0, 28 - h))
    left = int((CENTRE - x).round().clamp(0, 28 - w))
    return F.pad(ink, (left, 28 - w - left, top, 28 - h - top))


def find_digits(drawing: Image.Image) -> Tensor:
    """Black on white, mode L, to (N, 28, 28) uint8; all zeros, and N 1, if blank."""
    ink = ImageOps.invert(drawing)
    columns, _ = ink.getprojection()  # 1 where there is ink, else 0
    digits = []
    for run in re.finditer(b"\1+", bytes(columns)):
        part = ink.crop((run.start(), 0, run.end(), ink.height))
        part = part.crop(part.getbbox())
        if max(part.size) > SMALLEST * max(ink.size):
            digits.append(to_mnist(part))
    return torch.stack(digits or [torch.zeros(28, 28, dtype=torch.uint8)])


@torch.inference_mode()
def read(model: SimpleCNN, images: Tensor) -> dict:
    """What the page shows of `find_digits`; `digit` is null unless there is just one."""
    p = model(normalize(images)).softmax(1) * images.any()
    text = "".join(
        f"{x.argmax()}{'' if x.max() >= SURE else '?'}" for x in p if x.any()
    )
    return {
        "digit": int(text[0]) if len(p) == 1 and text else None,
        "text": text,
        "probabilities": p.amax(0).tolist(),
        "pixels": torch.cat([*images], 1).tolist(),
    }


# %% Teaching
# On 20 misread 1s with an upstroke, one taught at a time:
STEPS = 20
LR = 0.03
MOMENTUM = 0.5
TAUGHT = 8  # drawings in a batch
REPLAYED = 56  # other digits in a batch, so that they are not forgotten
DISTORTION = 0.07  # scale and shear by up to 7 %, shift by up to a pixel


def learn(model: SimpleCNN, taught: dict[bytes, int], replay: tuple) -> SimpleCNN:
    """A copy of the network that knows the taught drawings, of 28×28 bytes, as well."""
    torch.manual_seed(0)  # the same drawings make the same network
    images = torch.frombuffer(bytearray(b"".join(taught)), dtype=torch.uint8)
    images, labels = images.view(-1, 28, 28), torch.tensor(list(taught.values()))
    model = copy.deepcopy(model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(STEPS):
        new = torch.randint(len(images), [TAUGHT])
        old = torch.randint(len(replay[0]), [REPLAYED])
        x = normalize(torch.cat([images[new], replay[0][old]]))
        y = torch.cat([labels[new], replay[1][old]])
        noise = DISTORTION * torch.empty(len(x), 2, 3).uniform_(-1, 1)
        grid = F.affine_grid(torch.eye(2, 3) + noise, x.shape, align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, v in zip(model.parameters(), velocity, strict=True):
                p -= LR * (1 - step / STEPS) * v.mul_(MOMENTUM).add_(p.grad)
    return model


def write(path: Path, *parts: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(b"".join(parts))
    os.replace(temporary, path)


class Pupil:
    """A network, the drawings that it was taught, and the files of both.

    Each lesson starts from the untaught network and has all drawings in it: nothing
    drifts, and a drawing that is taught again, as another digit, is corrected.
    """

    def __init__(self, model: SimpleCNN, path: Path):
        self.untaught = self.model = model
        self.path, self.folder = path, path.with_suffix("")
        self.replay, self.taught = None, {}
        for folder in Path("data/mnist"), Path("data/sample"):
            if not self.replay and any(folder.glob("MNIST/raw/train-labels*")):
                self.replay = load(folder, "train")
        if self.replay and self.folder.exists():
            images, labels = load(self.folder, "train")
            keys = [bytes(image.flatten().tolist()) for image in images]
            self.taught = dict(zip(keys, labels.tolist(), strict=True))
            self.model = learn(model, self.taught, self.replay)

    def teach(self, image: Tensor, digit: int) -> None:
        """Learn one more (28, 28) uint8 drawing, and write the files."""
        taught = self.taught | {bytes(image.flatten().tolist()): digit}
        model = learn(self.untaught, taught, self.replay)
        torch.save(model.state_dict(), weights := io.BytesIO())
        raw, n = self.folder / "MNIST/raw", len(taught)
        header = struct.pack(">4I", 0x803, n, 28, 28)
        write(raw / "train-images-idx3-ubyte", header, *taught)
        header = struct.pack(">2I", 0x801, n)
        write(raw / "train-labels-idx1-ubyte", header, bytes(taught.values()))
        write(self.path, weights.getvalue())
        self.model, self.taught = model, taught

    def forget(self) -> None:
        """Delete the files and go back to the untaught network."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.model, self.taught = self.untaught, {}


# %% Page: sizes are in rem, a share of the window, so that it fits without scrolling
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Draw a digit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { font: min(2.2vw, 3.9svh) system-ui; color-scheme: light dark }
@media (orientation: portrait) { :root { font-size: min(4.3vw, 2.2svh) } }
body {
  display: flex; flex-wrap: wrap; place-content: center; gap: 1rem 2rem;
  min-height: 100svh; margin: 0; background: light-dark(#e9edf2, #15181d);
  touch-action: manipulation; user-select: none;
}
main { display: grid; grid: 1fr auto / 7rem 12rem; gap: .5rem 1rem; text-align: center }
canvas, output { display: block; width: 7rem; border-radius: .4rem }
#drawing { width: 21.5rem; margin-bottom: .6rem; cursor: crosshair; touch-action: none }
#answer { height: 8rem; font: bold 8rem/8rem system-ui }
#seen { image-rendering: pixelated }
button { padding: .2rem .6rem; border: 0; border-radius: .4rem }
button { font: inherit; color: inherit; background: no-repeat #8884 }
#bars { display: grid; gap: .3rem }
#bars button { display: flex; justify-content: space-between }
#bars button { background-image: linear-gradient(#2f7cf6b0 0 0) }
p { grid-column: 1 / 3; height: 2.6rem; margin: 0 }
</style>
<div><canvas id="drawing" width="560" height="560"></canvas>
  <button id="undo" title="Ctrl-Z">Undo</button>
  <button id="clear" title="Escape">Clear</button> Draw a digit</div>
<main>
  <div><output id="answer"></output>What it sees<canvas id="seen" height="28"></canvas></div>
  <div id="bars"></div>
  <p><span id="note"></span> <button id="forget">Forget</button></p>
</main>
<script type="module">  // each element with an id is a variable of that name
const pen = drawing.getContext("2d", {willReadFrequently: true});
Object.assign(pen, {fillStyle: "white", lineWidth: 40});
Object.assign(pen, {lineCap: "round", lineJoin: "round"});
let strokes = [], stroke, changed, busy, problem;
function redraw() {
  pen.fillRect(0, 0, 560, 560);
  strokes.forEach(path => pen.stroke(path));
  problem = "";
  changed = true;
}
drawing.onpointerdown = drawing.onpointermove = event => {
  // not a second finger, another button, a raised pen
  if (!event.isPrimary || event.buttons !== 1) return;
  if (event.type === "pointerdown") {  // a stroke may leave the drawing
    drawing.setPointerCapture(event.pointerId);
    strokes.push(stroke = new Path2D());
  } else if (!drawing.hasPointerCapture(event.pointerId)) return;  // from elsewhere
  const scale = 560 / drawing.clientWidth;
  const x = event.offsetX * scale, y = event.offsetY * scale;
  stroke.lineTo(x, y);
  stroke.lineTo(x + 0.1, y);  // so that a tap leaves a dot
  redraw();
};
undo.onclick = () => { strokes.pop(); redraw(); };
clear.onclick = () => { strokes = []; redraw(); };
forget.onclick = () => confirm("Forget all that you taught?") && change("/forget");
onkeydown = event => {
  if (event.key === "Escape") clear.click();
  const command = event.ctrlKey || event.metaKey;
  if (command) event.key === "z" && undo.click();
  else bars.children[event.key]?.click();
};
for (let digit = 0; digit < 10; digit++) {
  bars.innerHTML += `<button title="Key ${digit}">${digit}<span></span></button>`;
}
for (const [digit, row] of Object.entries(bars.children)) {
  row.onclick = () => change(`/teach?digit=${digit}`);
}
async function ask(path) {
  const body = await (await fetch(drawing.toDataURL())).blob();  // toBlob may wait
  const response = await fetch(path, {method: "POST", body});
  if (!response.ok) throw Error(await response.text());
  return response.json();
}
async function change(path) {  // the network
  busy = note.textContent = "Learning …";
  problem = await ask(path).then(() => "", error => error.message);
  busy = "";
  changed = true;
}
function show({text, probabilities, pixels, taught, off}) {
  answer.textContent = text;
  answer.style.fontSize = `${10 / Math.max(1.25, text.length)}rem`;
  answer.style.opacity = text.includes("?") ? 0.4 : 1;
  probabilities.forEach((p, digit) => {
    const row = bars.children[digit];
    row.style.backgroundSize = `${100 * p}%`;
    row.lastChild.textContent = `${Math.round(100 * p)} %`;
    row.disabled = off;
  });
  seen.width = pixels[0].length;
  const rgba = pixels.flat().flatMap(grey => [grey, grey, grey, 255]);
  const image = new ImageData(new Uint8ClampedArray(rgba), seen.width);
  seen.getContext("2d").putImageData(image, 0, 0);
  const learned = taught ? ` Learned: ${taught}.` : "";
  note.textContent = busy || problem || off || "Wrong? Click the right digit." + learned;
  forget.hidden = !taught;
}
redraw();
while (true) {  // one reading at a time, of the newest drawing
  do await new Promise(requestAnimationFrame); while (!changed);
  changed = false;  // before asking: what is drawn meanwhile goes into the next one
  try {
    show(await ask("/read"));
  } catch {
    note.textContent = "No connection, trying again …";
    await new Promise(resume => setTimeout(resume, 500));
    [changed, problem] = [true, ""];
  }
}
</script>"""


# %% Server
NO_REPLAY = "Teaching is off: no digits to replay in data/mnist or data/sample."


async def receive(request) -> Tensor:
    """The digits on the PNG that was posted; raises HTTPException."""
    png = io.BytesIO(await request.body())
    try:
        return find_digits(Image.open(png, formats=["PNG"]).convert("L"))
    except Exception:  # a damaged file makes Pillow raise almost anything
        raise HTTPException(400, "not a PNG that can be read") from None


def make_app(pupil: Pupil) -> Starlette:
    """The page at /. A PNG is posted to /read or /teach?digit=7, nothing to /forget.

    The answer is JSON: that of `read`, and `taught`, the number of drawings learned.
    """
    lesson = asyncio.Lock()  # one at a time

    async def teach(images: Tensor, digit: str) -> None:
        if not re.fullmatch("[0-9]", digit):
            raise HTTPException(400, "the label is no digit: /teach?digit=7")
        if len(images) != 1 or not images.any():
            raise HTTPException(400, "To teach, draw one digit at a time.")
        if not pupil.replay:
            raise HTTPException(400, NO_REPLAY)
        async with lesson:
            await asyncio.to_thread(pupil.teach, images[0], int(digit))

    async def post(request):
        own = f"http://{request.headers['host']}"
        if request.headers.get("origin", own) != own:
            raise HTTPException(403, "only draw.py's own page may ask")
        if request.url.path == "/forget":
            async with lesson:
                pupil.forget()
            return JSONResponse({"taught": 0})
        images = await receive(request)
        if request.url.path == "/teach":
            await teach(images, request.query_params.get("digit", ""))
        state = {
            "taught": len(pupil.taught),
            "off": None if pupil.replay else NO_REPLAY,
        }
        return JSONResponse(read(pupil.model, images) | state)

    app = Starlette(max_body_size=1_000_000)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.add_route("/", lambda request: HTMLResponse(PAGE))
    for path in "/read", "/teach", "/forget":
        app.add_route(path, post, methods=["POST"])
    return app


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--weights", default="data/mnist_cnn.pt", help="state_dict: a file or a URL")
    add("--taught", type=Path, default="data/taught.pt", help="state_dict to write")
    add("--port", type=int, default=8000, help="on 127.0.0.1; 0 is any free one")
    add("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(argv)
    # More would wait for each other: on a busy machine 44 ms an answer, not 2.
    torch.set_num_threads(1)
    app = make_app(Pupil(load_weights(args.weights), args.taught))
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:
        reason = f"cannot listen on port {args.port} ({error})"
        raise Error(f"{reason}; name another with --port") from None
    # Answers at once, not 42 ms later.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"Draw a digit on {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:  # in a thread: open may wait until the browser is closed
        open_page = threading.Thread(target=webbrowser.open, args=[address])
        open_page.daemon = True
        open_page.start()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
