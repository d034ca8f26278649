#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "hypothesis==6.170.15",
#     "matplotlib==3.11.2",
#     "pillow==13.0.0",
#     "pytest==9.2.0",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "tqdm==4.70.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///
"""Run the tests: `uv run tests/run.py [pytest's options]`."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = str(Path(__file__).parent)
    sys.exit(pytest.main(["--rootdir", here, "-p", "no:cacheprovider", "--durations=10", *(sys.argv[1:] or [here])]))
