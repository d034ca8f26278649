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

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # this script needs no NumPy
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
    """Black on white, mode L, to (28, 28) uint8 as in MNIST (LeCun et al. 1998): the longer side of the ink is
    20 pixels, its centre of mass is in the middle. A blank drawing gives all zeros."""
    ink = ImageOps.invert(drawing)
    ink = ink.crop(ink.getbbox() or (0, 0, 1, 1))
    w, h = (max(1, round(20 * side / max(ink.size))) for side in ink.size)
    ink = ink.resize((w, h), Image.Resampling.BOX)
    ink = torch.frombuffer(bytearray(ink.tobytes()), dtype=torch.uint8).view(h, w)
    mass = ink / ink.sum().clamp(min=1)  # its sums over rows and columns weigh their places
    top = int((14 - mass.sum(1) @ torch.arange(float(h))).round().clamp(0, 28 - h))
    left = int((14 - mass.sum(0) @ torch.arange(float(w))).round().clamp(0, 28 - w))
    return F.pad(ink, (left, 28 - w - left, top, 28 - h - top))


# %% Page: all sizes are in rem, a share of the window, so that the page fits into any without scrolling
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Draw a digit</title><link rel="icon" href="data:,">
<style>
:root { font: min(2.2vw, 3.9svh) system-ui, sans-serif; color-scheme: light dark }
@media (orientation: portrait) { :root { font-size: min(4.3vw, 2.25svh) } }
body { display: flex; flex-wrap: wrap; place-content: center; gap: 1rem 2rem; min-height: 100svh; margin: 0;
       background: light-dark(#e9edf2, #15181d); touch-action: manipulation; user-select: none }
main { display: flex; gap: 1.2rem; text-align: center }
canvas, output { display: block; width: 7rem; border-radius: .4rem }
#drawing { width: 21.5rem; margin-bottom: .6rem; cursor: crosshair; touch-action: none }
#answer { height: 8rem; font: bold 8rem/8rem system-ui, sans-serif }
#seen { image-rendering: pixelated }
#bars { display: grid; grid: auto-flow / 1rem 6.5rem 3.2rem; gap: .3rem .5rem; align-items: center }
#bars div { height: 1.3rem; border-radius: .2rem; background: linear-gradient(#2f7cf6 0 0) no-repeat #8884 }
#bars span { text-align: right }
button { font: inherit; padding: .4rem 1rem; border: 0; border-radius: .4rem; background: #8884 }
</style>
<div><canvas id="drawing" width="560" height="560" role="img" aria-label="Draw a digit here"></canvas>
  <button id="undo" title="Ctrl-Z">Undo</button> <button id="clear" title="Escape">Clear</button> Draw a digit</div>
<main><div><output id="answer"></output>What it sees<canvas id="seen" width="28" height="28"></canvas></div>
  <div id="bars" role="img" aria-label="Probabilities"></div></main>
<script type="module">  // each element with an id is a variable of that name
const pen = drawing.getContext("2d", {willReadFrequently: true});
Object.assign(pen, {fillStyle: "white", lineWidth: 40, lineCap: "round", lineJoin: "round"});
let strokes = [], stroke, changed;
function redraw() {
  pen.fillRect(0, 0, 560, 560);
  for (const path of strokes) pen.stroke(path);
  changed = true;
}
drawing.onpointerdown = drawing.onpointermove = event => {
  if (!event.isPrimary || event.buttons !== 1) return;  // a second finger, another button, a raised pen
  if (event.type === "pointerdown") {
    drawing.setPointerCapture(event.pointerId);  // a stroke may leave the drawing and come back
    strokes.push(stroke = new Path2D());
  } else if (!drawing.hasPointerCapture(event.pointerId)) return;  // pressed elsewhere, then moved in here
  const [x, y] = [event.offsetX, event.offsetY].map(length => length * 560 / drawing.clientWidth);
  stroke.lineTo(x, y);
  stroke.lineTo(x + 0.1, y);  // so that a tap leaves a dot
  redraw();
};
undo.onclick = () => { strokes.pop(); redraw(); };
clear.onclick = () => { strokes = []; redraw(); };
onkeydown = event => {
  if (event.key === "Escape") clear.click();
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo.click();
};
redraw();
while (true) {  // one request at a time, for the newest drawing
  do await new Promise(requestAnimationFrame); while (!changed);
  changed = false;  // before the request: what is drawn meanwhile goes into the next one
  const body = await (await fetch(drawing.toDataURL())).blob();  // toBlob may wait until the pen rests
  const {digit, probabilities, pixels} = await (await fetch("/read", {method: "POST", body})).json();
  answer.textContent = digit ?? "";
  bars.innerHTML = probabilities.map((p, i) =>
    `${i}<div style="background-size: ${100 * p}%"></div><span>${Math.round(100 * p)} %</span>`).join("");
  const rgba = pixels.flat().flatMap(grey => [grey, grey, grey, 255]);
  seen.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(rgba), 28), 0, 0);
}
</script>"""


# %% Server
def make_app(model: SimpleCNN) -> Starlette:
    """The page at /; a PNG posted to /read gives JSON: `digit` (null if blank), `probabilities`, `pixels`."""

    async def read(request):
        if request.headers.get("origin") not in (None, f"http://{request.headers['host']}"):
            return PlainTextResponse("only draw.py's own page may ask", 403)
        png = io.BytesIO(await request.body())
        try:
            image = to_mnist(Image.open(png, formats=["PNG"]).convert("L"))
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
    torch.set_num_threads(1)  # more would wait for each other: on a busy machine 44 ms an answer, not 2
    app = make_app(load_weights(args.weights))
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:
        raise Error(f"cannot listen on port {args.port} ({error}); name another with --port") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # answers at once, not 42 ms later
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"Draw a digit on {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:  # in a thread, as open may wait until the browser is closed
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)).run([listener])


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
