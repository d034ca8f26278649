#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
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

Click on the right digit or press its key: data/taught.pt is a network that knows your
drawings, which are in data/taught. A later start goes on with them.
"""

import argparse
import asyncio
import copy
import io
import os
import re
import socket
import struct
import sys
import threading
import urllib.request
import warnings
import webbrowser
from pathlib import Path

if __name__ == "__main__":  # not where a notebook or a test imports this file
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # it is not needed
import torch
import torch.nn.functional as F
import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
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


# %% Drawing
SMALLEST = 1 / 7  # of the drawing's side: a tap leaves a dot half as large
CENTRE = 14  # of 28 pixels, for the centre of mass
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


def find_digits(png: bytes) -> Tensor:
    """Black on white, columns without ink between digits, to (N, 28, 28) uint8.

    Without any digit it is one image of zeros. Raises Error if the file is damaged.
    """
    try:
        drawing = Image.open(io.BytesIO(png), formats=["PNG"]).convert("L")
    except Exception:  # Pillow raises almost anything
        raise Error("not a PNG that can be read") from None
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
    """What the page shows; `digit` is null unless there is just one."""
    rows = model(normalize(images)).softmax(1) * images.any()
    digits = [f"{p.argmax()}{'' if p.max() >= SURE else '?'}" for p in rows if p.any()]
    return {
        "digit": int(rows.argmax()) if len(digits) == 1 else None,
        "text": "".join(digits),
        "probabilities": rows.amax(0).tolist(),
        "pixels": torch.cat([*images], 1).tolist(),
    }


# %% Teaching
# One misread 1 with an upstroke taught, means of 16: 91 % of 200 others are read (65 %
# before), and 0.04 points of MNIST lost. Beside a constant: what another value does.
STEPS = 20  # 10: loses 1.7 times as much
LR = 0.03  # falls to 0; 0.06: loses 1.7 times as much
MOMENTUM = 0.5  # 0.9, with LR / 5: loses twice as much
TAUGHT = 8  # drawings in a batch; 16: 93 % and 0.05 points
REPLAYED = 56  # other digits in a batch, so that they are not forgotten
DISTORTION = 0.15  # scale, shear: 15 %, shift: 2 pixels; 0: loses 3 times as much
REPLAY = Path("data/sample/MNIST/raw"), Path("data/mnist/MNIST/raw")
FILES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def load_digits(raw: Path) -> list[Tensor]:
    """(N, 28, 28) uint8 images and (N,) uint8 labels; raises Error on bad data."""
    try:
        files = [bytearray((raw / name).read_bytes()) for name in FILES]
        images, labels = (torch.frombuffer(file, dtype=torch.uint8) for file in files)
        images, labels = images[16:].view(-1, 28, 28), labels[8:]  # after the headers
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
    except Exception as error:
        raise Error(f"no 28×28 digits in {raw}: {error}") from None
    return [images, labels]


def write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def learn(model: SimpleCNN, taught: list[Tensor], replay: list[Tensor]) -> SimpleCNN:
    """A copy of the network that also knows the taught images and labels."""
    torch.manual_seed(0)  # the same drawings make the same network
    model = copy.deepcopy(model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(STEPS):
        new = torch.randint(len(taught[1]), [TAUGHT])
        old = torch.randint(len(replay[1]), [REPLAYED])
        x = normalize(torch.cat([taught[0][new], replay[0][old]]))
        y = torch.cat([taught[1][new], replay[1][old]]).long()
        noise = DISTORTION * torch.empty(len(x), 2, 3).uniform_(-1, 1)
        grid = F.affine_grid(torch.eye(2, 3) + noise, x.shape, align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, v in zip(model.parameters(), velocity, strict=True):
                p -= LR * (1 - step / STEPS) * v.mul_(MOMENTUM).add_(p.grad)
    return model


class Pupil:
    """A network, the drawings that it was taught, and the files of both.

    Each lesson starts from the untaught network and has all drawings in it: nothing
    drifts, and a drawing that is taught again, as another digit, is corrected.
    """

    def __init__(self, model: SimpleCNN, path: Path):
        self.untaught = self.model = model
        self.path, self.raw = path, path.with_suffix("") / "MNIST/raw"
        self.lesson = threading.Lock()  # one at a time
        self.taught = [torch.empty(0, 28, 28).byte(), torch.empty(0).byte()]
        self.replay = None
        self.hint = "No lessons: no digits to replay in data/mnist or data/sample."
        if any(self.raw.glob("t10k*")):
            raise Error(f"{self.raw} holds other digits; name another --taught")
        for raw in REPLAY:
            if (raw / FILES[1]).exists():
                self.replay = load_digits(raw)
                self.hint = "Draw a digit. Wrong? Click the right one."
        if self.replay and (self.raw / FILES[1]).exists():
            self.taught = load_digits(self.raw)
            self.model = learn(self.untaught, self.taught, self.replay)

    def teach(self, drawing: Tensor, digit: str) -> None:
        """Learn one more digit of `find_digits`, and write the files."""
        if not self.replay:
            raise Error(self.hint)
        if len(drawing) > 1 or not drawing.any() or not re.fullmatch("[0-9]", digit):
            raise Error("Draw one digit at a time, then click the right one.")
        with self.lesson:
            images, labels = self.taught
            others = (images != drawing).any(2).any(1)
            images = torch.cat([images[others], drawing])
            labels = torch.cat([labels[others], torch.tensor([int(digit)]).byte()])
            model = learn(self.untaught, [images, labels], self.replay)
            plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
            weights = io.BytesIO()
            torch.save(plain.state_dict(), weights)
            write(self.path, weights.getvalue())
            for name, x in zip(FILES, [images, labels], strict=True):
                # the format: a magic number, the sizes, the bytes
                header = struct.pack(f">{1 + x.ndim}I", 2048 + x.ndim, *x.shape)
                write(self.raw / name, header + bytes(x.flatten().tolist()))
            self.model, self.taught = model, [images, labels]

    def forget(self) -> None:
        """Go back to the untaught network, and delete the files."""
        with self.lesson:
            for file in self.path, *(self.raw / name for name in FILES):
                file.unlink(missing_ok=True)
            self.model, self.taught = self.untaught, [x[:0] for x in self.taught]


# %% Page: sizes are in rem, a share of the window, so that it fits without scrolling
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Draw a digit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { font: min(2.2vw, 3.9svh) system-ui; color-scheme: light dark }
@media (orientation: portrait) { :root { font-size: min(4.3vw, 2.25svh) } }
body {
  display: flex; flex-wrap: wrap; place-content: center; gap: 1rem 2rem;
  min-height: 100svh; margin: 0; background: light-dark(#e9edf2, #15181d);
  touch-action: manipulation; user-select: none;
}
main { display: grid; grid: auto / 7rem 12.5rem; gap: .6rem 1rem; text-align: center }
canvas, output { display: block; width: 7rem; border-radius: .4rem }
#drawing { width: 21.5rem; margin-bottom: .6rem; cursor: crosshair; touch-action: none }
#answer { height: 8rem; font: bold 8rem/8rem system-ui }
#seen { image-rendering: pixelated }
#note { grid-column: 1 / 3 }
#bars { display: grid; gap: .3rem }
button {
  padding: .1rem .6rem; border: 0; border-radius: .4rem; font: inherit;
  background: linear-gradient(#2f7cf6b0 0 0) 0 / 0 no-repeat #8884;
}
#bars button { display: flex; justify-content: space-between }
#bars span { pointer-events: none }
</style>
<div><canvas id="drawing" width="560" height="560" aria-label="Drawing"></canvas>
  <button id="undo" title="Ctrl-Z">Undo</button>
  <button id="clear" title="Escape">Clear</button>
  <button id="forget">Forget</button> Learned: <b id="count"></b></div>
<main><div><output id="answer"></output>What it sees
    <canvas id="seen" height="28"></canvas></div>
  <div id="bars"></div><div id="note"></div></main>
<script type="module">  // each element with an id is a variable of that name
const pen = drawing.getContext("2d", {willReadFrequently: true});
Object.assign(pen, {lineWidth: 40, lineCap: "round", lineJoin: "round"});
pen.fillStyle = "white";
let strokes = [], stroke, changed, learning, refusal;
function redraw() {
  refusal = "";
  pen.fillRect(0, 0, 560, 560);
  strokes.forEach(path => pen.stroke(path));
  changed = true;
}
drawing.onpointerdown = drawing.onpointermove = event => {
  if (!event.isPrimary || event.buttons !== 1) return;  // a second finger, no press
  if (event.type === "pointerdown") {
    drawing.setPointerCapture(event.pointerId);  // a stroke may leave the drawing
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
forget.onclick = () => confirm("Delete all that you taught?") && post("/forget");
bars.onclick = ({target}) => {
  if (!target.value) return;  // between two bars
  learning = note.textContent = "Learning …";
  post("/teach?digit=" + target.value);
};
onkeydown = ({key, ctrlKey, metaKey, repeat}) => {
  if (key === "Escape") clear.click();
  if (ctrlKey || metaKey) key === "z" && undo.click();
  else if (!repeat) bars.children[key]?.click();
};
for (let i = 0; i < 10; i++) {
  bars.innerHTML += `<button value="${i}">${i}<span></span></button>`;
}
function show({text, probabilities, pixels, taught, hint}) {
  answer.textContent = text;
  answer.style.fontSize = `${10 / Math.max(1.25, text.length)}rem`;
  answer.style.opacity = text.includes("?") ? 0.4 : 1;
  probabilities.forEach((p, digit) => {
    bars.children[digit].style.backgroundSize = `${100 * p}%`;
    bars.children[digit].lastChild.textContent = `${Math.round(100 * p)} %`;
  });
  seen.width = pixels[0].length;
  const ink = seen.getContext("2d");
  pixels.forEach((row, y) => row.forEach((grey, x) => {
    ink.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    ink.fillRect(x, y, 1, 1);
  }));
  note.textContent = learning || refusal || hint;
  count.textContent = taught;
}
async function post(path) {
  const body = await (await fetch(drawing.toDataURL())).blob();  // toBlob may wait
  try {
    const response = await fetch(path, {method: "POST", body});
    if (path === "/read") return show(await response.json());
    learning = "";
    changed ||= response.ok;  // a network that changed reads again
    if (!response.ok) note.textContent = refusal = await response.text();
  } catch {
    learning = "";
    note.textContent = "No connection, trying again …";
    await new Promise(resume => setTimeout(resume, 500));
    changed = true;
  }
}
redraw();
while (true) {  // one reading at a time, of the newest drawing
  do await new Promise(requestAnimationFrame); while (!changed);
  changed = false;  // before asking: what is drawn meanwhile goes into the next one
  await post("/read");
}
</script>"""


# %% Server
def make_app(pupil: Pupil) -> Starlette:
    """The page at /. A PNG is posted to /read or /teach?digit=7, nothing to /forget."""

    async def post(request):
        own = f"http://{request.headers['host']}"
        if request.headers.get("origin", own) != own:
            return PlainTextResponse("only draw.py's own page may ask", 403)
        if request.url.path == "/forget":
            await asyncio.to_thread(pupil.forget)
            return JSONResponse({"taught": 0})
        images = find_digits(await request.body())
        if request.url.path == "/teach":
            digit = request.query_params.get("digit", "")
            await asyncio.to_thread(pupil.teach, images, digit)
        state = {"taught": len(pupil.taught[1]), "hint": pupil.hint}
        return JSONResponse(read(pupil.model, images) | state)

    def refuse(_, error):
        return PlainTextResponse(str(error), 400 if isinstance(error, Error) else 500)

    refusals = {Error: refuse, OSError: refuse}
    app = Starlette(max_body_size=1_000_000, exception_handlers=refusals)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.add_route("/", lambda request: HTMLResponse(PAGE))
    for path in "/read", "/teach", "/forget":
        app.add_route(path, post, methods=["POST"])
    return app


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", default="data/mnist_cnn.pt", help="file or URL")
    keeps = "state_dict to write; the folder of that name keeps the drawings"
    add("--taught", type=Path, default="data/taught.pt", help=keeps)
    add("--port", type=int, default=8000, help="on 127.0.0.1; 0 is any free one")
    add("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # more wait for each other: 44 ms on a busy machine, not 2
    app = make_app(Pupil(load_weights(args.weights), args.taught))
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:
        reason = f"cannot listen on port {args.port} ({error})"
        raise Error(f"{reason}; name another with --port") from None
    # answers at once, not 42 ms later
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"Draw a digit on {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:  # in a thread, as it may wait until the browser is closed
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    try:
        main()
    except (Error, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
