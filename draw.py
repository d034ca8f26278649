#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0", "starlette==1.10.0", "torch==2.15.0", "uvicorn==0.54.0"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% Start
"""Draw a digit in the browser and watch the network of train.py read it, stroke by stroke.

    uv run draw.py                opens http://127.0.0.1:8000, which only this machine can reach
    uv run draw.py --port 9000 --weights data/mnist_cnn.pt --no-browser
"""

import argparse
import io
import socket
import sys
import threading
import urllib.request
import warnings
import webbrowser

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # nothing here needs it
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
    """Two convolutions, two linear layers, 225,034 parameters: (N, 1, 28, 28) float32 to (N, 10) logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(1600, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # relu after pooling: the same, a quarter of the work
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def normalize(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float32, by the mean and deviation of MNIST's training images."""
    return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


def load_weights(source: str) -> SimpleCNN:
    """The network, in eval mode, with the state_dict in a file or at a URL; raises Error where none fits."""
    model = SimpleCNN()
    try:
        file = io.BytesIO(urllib.request.urlopen(source, timeout=10).read()) if "://" in source else source
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))  # runs no code
    except OSError as error:
        raise Error(f"no weights in {source} ({error}); `uv run train.py` makes them") from None
    except Exception as error:  # torch's own words for a file with code would advise to run it
        reason = "it is no plain state_dict" if "weights_only" in str(error) else error
        raise Error(f"{source} does not fit SimpleCNN in train.py, predict.py and draw.py: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise Error(f"the weights in {source} are not finite; train again, with a smaller --lr")
    return model.eval()


def to_mnist(drawing: Image.Image) -> Tensor:
    """Black on white, mode L, to (28, 28) uint8; all zero if blank. As in MNIST (LeCun et al. 1998) the longer
    side of the ink is 20 pixels and its centre of mass in the middle."""
    ink = ImageOps.invert(drawing)
    ink = ink.crop(ink.getbbox() or (0, 0, 1, 1))
    w, h = (max(1, round(20 * side / max(ink.size))) for side in ink.size)
    ink = ink.resize((w, h), Image.Resampling.BOX)
    ink = torch.frombuffer(bytearray(ink.tobytes()), dtype=torch.uint8).view(h, w)
    mass = ink / ink.sum().clamp(min=1)
    top = int((14 - mass.sum(1) @ torch.arange(float(h))).round().clamp(0, 28 - h))
    left = int((14 - mass.sum(0) @ torch.arange(float(w))).round().clamp(0, 28 - w))
    return F.pad(ink, (left, 28 - w - left, top, 28 - h - top))


# %% Page: all sizes are in rem, so that the drawing and the answer fit beside or below each other
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Draw a digit</title><link rel="icon" href="data:,">
<style>
:root { font: max(min(1.7vw, 3svh), min(3.3vw, 1.75svh)) system-ui, sans-serif; color-scheme: light dark }
body { display: flex; flex-wrap: wrap; place-content: center; gap: 1rem 2.5rem; min-height: 100svh; margin: 0;
       font-size: 1.3rem; background: light-dark(#e9edf2, #15181d);
       touch-action: manipulation; user-select: none }
#drawing { display: block; width: 28rem; border-radius: 1rem; cursor: crosshair; touch-action: none }
nav { display: flex; gap: .75rem; align-items: center; margin-top: .75rem }
button { font: inherit; padding: .5rem 1.3rem; border: 0; border-radius: .5rem; background: #8884 }
main { display: grid; grid-template: 1fr auto / 9rem 15rem; gap: 0 1.5rem }
output { font-size: 10rem; font-weight: bold; line-height: 9rem; height: 9rem; text-align: center }
figure { margin: 0; font-size: 1rem; text-align: center }
#seen { display: block; width: 9rem; background: black; image-rendering: pixelated; border-radius: .5rem }
ol { grid-area: 1 / 2 / 3; display: grid; margin: 0; padding: 0; font-variant-numeric: tabular-nums }
li { display: flex; gap: .5rem; align-items: center }
li span { width: 4.7rem; text-align: right; white-space: nowrap }
i { flex: 1; height: 1.7rem; border-radius: .25rem; background: linear-gradient(#2f7cf6 0 0) no-repeat #8884 }
</style>
<div><canvas id="drawing" width="560" height="560" role="img" aria-label="Draw a digit here"></canvas>
  <nav><button id="undo" title="Ctrl-Z">Undo</button> <button id="clear" title="Escape">Clear</button>
    Draw a digit</nav></div>
<main><output id="answer" aria-label="The digit"></output>
  <figure>What it sees<canvas id="seen" width="28" height="28"></canvas></figure>
  <ol id="bars" aria-label="Probabilities"></ol></main>
<script type="module">  // elements go by their id
const pen = drawing.getContext("2d", {willReadFrequently: true}), white = new ImageData(28, 28);
Object.assign(pen, {fillStyle: "white", lineWidth: 40, lineCap: "round", lineJoin: "round"});
white.data.fill(255);
let strokes = [], stroke, changed;
function draw() {
  pen.fillRect(0, 0, 560, 560);
  for (const places of strokes) pen.stroke(new Path2D(`M${places.join("L")}h.1`));  // h.1: a tap leaves a dot
  changed = true;
}
const place = event => [event.offsetX, event.offsetY].map(length => length * 560 / drawing.clientWidth);
drawing.onpointerdown = event => {
  if (!event.isPrimary || event.button) return;  // a second finger, the right button
  drawing.setPointerCapture(event.pointerId);  // also where it leaves the drawing
  draw(strokes.push(stroke = [place(event)]));
};
drawing.onpointermove = event => {
  if (event.isPrimary && event.buttons === 1 && drawing.hasPointerCapture(event.pointerId))
    draw(stroke.push(place(event)));
};
undo.onclick = () => draw(strokes.pop());
clear.onclick = () => draw(strokes = []);
onkeydown = event => {
  if (event.key === "Escape") clear.click();
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo.click();
};
draw();
for (;; await new Promise(requestAnimationFrame)) {  // one request at a time, for the newest drawing
  if (!changed) continue;
  changed = false;  // before the wait, so that no stroke is lost
  const body = await (await fetch(drawing.toDataURL())).blob();  // toBlob waits for an idle browser
  const {digit, probabilities, pixels} = await (await fetch("/read", {method: "POST", body})).json();
  answer.textContent = digit ?? "";
  bars.innerHTML = probabilities.map((p, i) => `<li>${i}<i style="background-size: ${100 * p}%"></i>` +
    `<span>${Math.round(100 * p)} %</span></li>`).join("");
  pixels.flat().forEach((value, i) => white.data[4 * i + 3] = value);  // opaque where the ink is
  seen.getContext("2d").putImageData(white, 0, 0);
}
</script>"""


# %% Server
def make_app(model: SimpleCNN) -> Starlette:
    """The page at /; a PNG posted to /read gives JSON: `digit` (null if blank), `probabilities`, `pixels`."""

    async def read(request):
        address = f"http://{request.headers['host']}"
        if request.headers.get("origin", address) != address:
            return PlainTextResponse("only draw.py's own page may ask", 403)
        body = await request.body()
        try:
            image = to_mnist(Image.open(io.BytesIO(body), formats=["PNG"]).convert("L"))
        except Exception:  # a damaged file makes Pillow raise almost anything
            return PlainTextResponse("not a PNG that can be read", 400)
        probabilities = model(normalize(image[None])).softmax(1)[0] * image.any()
        digit = int(probabilities.argmax()) if image.any() else None
        return JSONResponse(dict(digit=digit, probabilities=probabilities.tolist(), pixels=image.tolist()))

    app = Starlette(max_body_size=1_000_000)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.add_route("/", lambda request: HTMLResponse(PAGE))
    app.add_route("/read", read, methods=["POST"])
    return app


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", default="data/mnist_cnn.pt", help="state_dict: a file or a URL")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0 is any free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # beside two busy programs 2 ms for an answer, not 44
    app = make_app(load_weights(args.weights).requires_grad_(False))
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:
        raise Error(f"cannot listen on port {args.port} ({error}); name another with --port") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # this too saves 42 ms
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"Draw a digit on {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:  # in a thread, as it may wait for the browser
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)).run([listener])


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
