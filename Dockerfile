# predict.py with its weights and the test images:
#
#     uv run train.py && docker build -t mnist .
#     docker run --rm mnist
#     docker run --rm -v "$PWD/digits:/digits:ro" mnist /digits
#
# At run time it needs no network, no root and no writable file system (`--network none`, `--read-only`).

ARG BASE=ghcr.io/astral-sh/uv:0.13.9-python3.13-trixie-slim

# What predict.py needs. This runs again whenever predict.py changes, but its two files change only with the metadata.
FROM ${BASE} AS requirements
# cpu, cu132 and so on are folders of PyTorch's index; default is the package registry alone, with CUDA builds for Linux.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
WORKDIR /requirements
RUN [ "$TORCH" = default ] || printf 'index-strategy = "unsafe-best-match"\n[[index]]\nurl = "%s"\n' "$TORCH_INDEX/$TORCH" > uv.toml; touch uv.toml
COPY export_requirements.py predict.py ./
RUN python3 export_requirements.py predict.py && if [ "$TORCH" != default ] && ! grep -q "^torch==.*+$TORCH" requirements.txt; then \
    echo "error: $TORCH_INDEX/$TORCH has no build of torch for predict.py; choose another --build-arg TORCH" >&2; exit 1; fi

FROM ${BASE}
WORKDIR /mnist
COPY --from=requirements /requirements/requirements.txt /requirements/uv.toml ./
# --no-cache: uv links the wheels out of a temporary cache, so that they are in the image once.
RUN uv venv --no-cache /venv \
    && uv pip sync --no-cache --compile-bytecode --require-hashes --python /venv/bin/python requirements.txt \
    && useradd --create-home mnist
COPY predict.py ./
# The weights and, as far as .dockerignore lets them in, the test images of MNIST and of the sample, which stands in for MNIST.
COPY data data
RUN test -f data/mnist_cnn.pt || { echo "error: there is no data/mnist_cnn.pt; \`uv run train.py\` makes it" >&2; exit 1; }; \
    test -f data/mnist/MNIST/raw/t10k-images-idx3-ubyte || { rm -rf data/mnist && ln -s sample data/mnist; }; \
    chmod -R a+rX .
USER mnist
ENTRYPOINT ["/venv/bin/python", "predict.py"]
