# predict.py with its weights and the sample's test images. It runs without network, root or writable files.
#     uv run train.py && docker build -t mnist .
#     docker run --rm mnist
#     docker run --rm -v "$PWD/digits:/digits:ro" mnist /digits
#     docker run --rm -v "$PWD/data/mnist:/data:ro" mnist --data-dir /data

ARG BASE=ghcr.io/astral-sh/uv:0.13.9-python3.13-trixie-slim
# PyTorch's CPU builds. Others: .../whl/cu132 for CUDA, or empty for the build that `uv run` installs.
ARG UV_INDEX=https://download.pytorch.org/whl/cpu

# A stage of its own, so that a change of predict.py alone does not install its packages again.
FROM ${BASE} AS requirements
ARG UV_INDEX
COPY predict.py ./
# PyTorch's index also has old copies of other packages; without the strategy uv would look no further.
RUN uv export --index-strategy unsafe-best-match --script predict.py --output-file requirements.txt

FROM ${BASE}
ARG UV_INDEX
WORKDIR /mnist
COPY --from=requirements /requirements.txt ./
# --no-cache: uv links the wheels out of a temporary cache, so the image holds them once.
RUN uv venv --no-cache /venv && uv pip sync --no-cache --compile-bytecode \
    --index-strategy unsafe-best-match --python /venv requirements.txt
COPY --chown=nobody predict.py ./
COPY --chown=nobody data/sample data/sample
COPY --chown=nobody data/mnist_cnn.pt data/
USER nobody
# Named, because predict.py alone would first try to download MNIST. A later --data-dir wins.
ENTRYPOINT ["/venv/bin/python", "predict.py", "--data-dir", "data/sample"]
