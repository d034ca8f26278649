#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "axe-playwright-python==0.1.8",
#     "matplotlib==3.11.2",
#     "opencv-python-headless==5.0.0.93",
#     "pi-heif==1.4.0",
#     "pillow==13.0.0",
#     "pillow-heif==1.8.1",
#     "playwright==1.65.2",
#     "pytest==9.2.0",
#     "starlette==1.10.0",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "tqdm==4.70.1",
#     "uvicorn==0.54.0",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Run the tests: all but the slow ones, or those that are named, with pytest's options.

uv run tests/run.py -m slow                the container, pip's 3 GB, other Pythons
uv run tests/run.py tests/test_export.py
"""

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
OPTIONS = ["--rootdir", HERE, "-p", "no:cacheprovider", "--durations=9", "-rs"]
OPTIONS += ["-o", "markers=slow: takes minutes", "-m", "not slow"]  # a later -m wins

if __name__ == "__main__":
    words = sys.argv[1:]
    if not any(Path(word.split("::")[0]).exists() for word in words):
        words.append(HERE)
    sys.exit(pytest.main(OPTIONS + words))
