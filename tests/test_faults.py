"""Weights as people have them; what goes wrong ends in one line, nothing is lost."""

import io
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import (
    ENV,
    NOWHERE,
    REPO,
    SAMPLE,
    assert_one_error_line,
    driver,
    files_below,
    import_script,
    run,
    training,
    uv_run,
)
from torch import nn

STEP = ["--data-dir", str(SAMPLE), "--epochs", "0.02"]
posix = pytest.mark.skipif(os.name != "posix", reason="of Linux and macOS")

# %% Weights
STATE = import_script("predict").SimpleCNN().state_dict()


def prefixed(prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def network(**layers: nn.Module) -> dict:
    """The state_dict of a SimpleCNN that somebody changed."""
    model = import_script("predict").SimpleCNN()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model.state_dict()


def saved(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


class Code:
    """A pickle of it makes a folder when it is read without care."""

    def __reduce__(self):
        return (os.mkdir, ("made-by-weights",))


READ = {
    "as saved": STATE,
    "a plain dictionary": dict(STATE),
    "in another order": dict(reversed(STATE.items())),
    "half precision": {name: tensor.half() for name, tensor in STATE.items()},
    "DistributedDataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "compiled, then DDP": prefixed("module._orig_mod."),
    "DDP, then compiled": prefixed("_orig_mod.module."),
    "state_dict": {"epoch": 3, "state_dict": STATE, "optimizer": {}},
    "model_state_dict": {"model_state_dict": STATE, "loss": torch.tensor(0.1)},
    "model": {"model": prefixed("module."), "scaler": {}, "best": None},
}


@pytest.mark.parametrize("case", READ)
def test_weights_read(case, predict, tmp_path):
    torch.save(READ[case], tmp_path / "w.pt")
    model = predict.load_weights(str(tmp_path / "w.pt"))
    assert not model.training
    found = model.state_dict()
    assert list(found) == list(STATE)
    for name in found:
        expected = STATE[name].half() if "half" in case else STATE[name]
        assert found[name].equal(expected.float())


PLAIN = ["state_dict"]
REFUSED = {  # the content or the bytes of the file, words of the error
    "hidden size 256": (
        network(fc1=nn.Linear(1600, 256), fc2=nn.Linear(256, 10)),
        ["does not fit SimpleCNN", "fc1.weight", "[256, 1600]", "[128, 1600]"],
    ),
    "a layer more": (network(fc3=nn.Linear(10, 10)), ["Unexpected", "fc3.weight"]),
    "not a number": (
        STATE | {"fc1.bias": torch.full((128,), torch.nan)},
        ["not finite", "--lr"],
    ),
    "none": ({"model": None}, PLAIN),
    "a list": (list(STATE.values()), PLAIN),
    "numbers for names": ({1: torch.ones(3)}, []),
    "code": ({"conv1.weight": Code()}, PLAIN),
    "a whole model": (nn.Linear(1, 1), PLAIN),
    "with its arguments": ({"model": STATE, "args": Namespace(lr=1)}, PLAIN),
    "an empty file": (b"", PLAIN),
    "cut off": (saved(STATE)[:-500], ["corrupted"]),
    "a web page": (b"<!DOCTYPE html><html>", PLAIN),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", PLAIN),
    "safetensors": ((8).to_bytes(8, "little") + b"{}      ", PLAIN),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_refused(case, predict, tmp_path, monkeypatch):
    """No code in them runs, and no advice of torch's to run it is passed on."""
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[case]
    Path("w.pt").write_bytes(content if isinstance(content, bytes) else saved(content))
    with pytest.raises(predict.Error) as caught:
        predict.load_weights("w.pt")
    message = f"error: {caught.value}"
    assert all(word in message for word in ["w.pt", *words]), message
    assert len(message) <= 500 and "\n" not in message
    assert "weights_only" not in message and not Path("made-by-weights").exists()


@pytest.mark.parametrize("source", ["none.pt", ".", f"{NOWHERE}/w.pt", "404"])
def test_no_weights(source, predict, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = server.url + "w.pt" if source == "404" else source
    with pytest.raises(predict.Error) as caught:
        predict.load_weights(source)
    assert str(caught.value).startswith(f"no weights in {source} (")
    assert "`uv run train.py` makes them" in str(caught.value)


# %% Arguments
ARGUMENTS = {  # what follows STEP, words of the error
    "no epochs": ("--epochs 0", "must be above 0"),
    "epochs below 0": ("--epochs -1", "must be above 0"),
    "no number of epochs": ("--epochs nan", "must be above 0"),
    "endless": ("--epochs inf", "must be above 0"),
    "no rate": ("--lr 0", "must be above 0"),
    "no batch": ("--batch-size 0", "must be above 0"),
    "diverges in its last step": ("--lr 1e30", "diverged; try a smaller --lr"),
    "own digits are not there": ("--also none", "none has no train-images"),
    "weights are a folder": ("--weights taken", "cannot write taken"),
    "weights below a file": ("--weights taken/file/w.pt", "taken/file"),
    "weights are no file": (f"--weights {os.devnull}", "cannot write"),
    "plot is a folder": ("--plots plots", "cannot write plots/training.png"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(case, train, tmp_path, monkeypatch):
    """What cannot be done writes nothing."""
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/file").write_bytes(b"old")
    Path("plots/training.png").mkdir(parents=True)
    arguments, words = ARGUMENTS[case]
    with pytest.raises((train.Error, OSError), match=words):
        train.main([*STEP, *arguments.split()])
    assert files_below(tmp_path) == {"file"}


def test_one_line(tmp_path):
    for command, line in (
        ("predict.py", "error: no weights in data/mnist_cnn.pt ("),
        ("train.py --plots plots", "uv run --with matplotlib train.py"),
    ):
        assert_one_error_line(uv_run(*command.split(), cwd=tmp_path), line)


# %% Ends in the middle
def leave_100_kb() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


KILL = """import os, signal, sys
def kill(event, paths):
    if event == "os.rename" and str(paths[1]).endswith("w.pt"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)"""
ENDS = {  # code before, what limits the process, exit status, number of new files
    "full disk": ("", leave_100_kb, 1, 0),
    "killed": (KILL, None, -signal.SIGKILL, 1),
}


@posix
@pytest.mark.parametrize("case", ENDS)
def test_old_weights_outlive_a_failure_while_saving(case, tmp_path):
    code, limit, status, new = ENDS[case]
    (tmp_path / "w.pt").write_bytes(b"old")
    command = [sys.executable, driver(tmp_path, code), *STEP, "--weights", "w.pt"]
    # The limit would cut Python's own files of bytecode, too.
    env = ENV | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = run(*command, cwd=tmp_path, env=env, preexec_fn=limit)
    assert result.returncode == status, result.stderr
    assert (tmp_path / "w.pt").read_bytes() == b"old"
    assert len(files_below(tmp_path)) == 2 + new  # with the driver
    if case == "full disk":
        assert_one_error_line(result, "File too large")


@posix
def test_ctrl_c_in_training(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    command = [sys.executable, REPO / "train.py"]
    # A shell's background jobs ignore Ctrl-C, and so would this one.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with training(*command, cwd=tmp_path, **options) as process:
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and b"Traceback" not in stderr
    assert files_below(tmp_path) == {"w.pt"}
    assert (tmp_path / "w.pt").read_bytes() == b"old"
