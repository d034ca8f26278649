# predict.py and read.py with the weights and the sample's test digits. They run without
# network, root or writable files.
#     uv run train.py && docker build -t mnist .
#     docker run --rm mnist                        the accuracy on 1,000 digits of
#                     data/sample, which are among MNIST's training images
#     docker run --rm -v "$PWD/data/mnist:/mnist/data/mnist:ro" mnist    on MNIST's own
#     docker run --rm mnist predict.py --json      the same with options
#     docker run --rm -v "$PWD/scans:/scans:ro" mnist read.py /scans

FROM python:3.13-slim-trixie AS packages
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /bin/
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy VIRTUAL_ENV=/venv
# PyTorch's CPU build, 190 MB; empty for the one that `uv run` installs, 3 GB with CUDA.
ARG TORCH_BACKEND=cpu
COPY predict.py read.py ./
RUN sed -i "s/^# \[tool.uv\]$/&${TORCH_BACKEND:+\n# torch-backend = '$TORCH_BACKEND'}/" *.py
RUN --mount=type=cache,target=/root/.cache/uv uv venv /venv && \
    uv sync --active --script predict.py && uv sync --active --inexact --script read.py

FROM python:3.13-slim-trixie
WORKDIR /mnist
COPY --from=packages /venv /venv
COPY --chown=nobody predict.py read.py ./
COPY --chown=nobody data/sample data/sample
COPY --chown=nobody data/mnist_cnn.pt data/ink.pt data/
USER nobody
ENTRYPOINT ["/venv/bin/python"]
# Without a folder at data/mnist it reads the sample: nothing can be written there.
CMD ["predict.py"]
