"""What goes wrong for a user ends with one line, `error: ...`, and nothing is lost."""

import io
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ENV, REPO, SAMPLE, assert_one_error_line, digit, driver, files_below, run, uv_run

STEP = ["--data-dir", SAMPLE, "--epochs", 0.02]


# Weights


class Code:
    """A pickle of it makes a folder when it is read without care."""

    def __reduce__(self):
        return (os.mkdir, ("made-by-weights",))


def saved(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


WEIGHTS = {  # the bytes of the file or what torch.save makes it of, and words of the error
    "empty": (lambda state: b"", ["does not fit"]),
    "cut off": (lambda state: saved(state)[:-500], ["does not fit"]),
    "missing key": (lambda state: {}, ["Missing key", "conv2.bias", "train.py", "predict.py"]),
    "extra key": (lambda state: state | {"fc3.bias": torch.zeros(1)}, ["Unexpected key", "fc3.bias"]),
    "another shape": (lambda state: state | {"fc1.bias": torch.zeros(64)}, ["fc1.bias", "[64]", "[128]"]),
    "NaN": (lambda state: state | {"fc1.bias": torch.full((128,), float("nan"))}, ["not finite"]),
    "a list": (lambda state: list(state.values()), ["does not fit"]),
    "code": (lambda state: {"conv1.weight": Code()}, ["no plain state_dict"]),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_damaged_and_foreign_weights(case, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, words = WEIGHTS[case]
    content = change(predict.SimpleCNN().state_dict())
    (tmp_path / "w.pt").write_bytes(content if isinstance(content, bytes) else saved(content))
    with pytest.raises(predict.Error) as caught:
        predict.load_weights("w.pt")
    assert all(word in str(caught.value) for word in ["w.pt", *words]), caught.value
    assert files_below(tmp_path) == {"w.pt"} and not (tmp_path / "made-by-weights").exists()


def test_weights_as_a_user_meets_them(tmp_path):
    torch.save({}, tmp_path / "other.pt")
    errors = {"none.pt": "uv run train.py", "other.pt": "fc1.bias", "http://127.0.0.1:9/w": "refused"}
    for name, words in errors.items():
        assert_one_error_line(uv_run("predict.py", "--weights", name, cwd=tmp_path), name, words)


# Arguments and outputs

ARGUMENTS = {
    "train": ["--epochs 0", "--epochs nan", "--lr inf", "--batch-size x", "--seed x", "--device x", "x.png"],
    "predict": ["--nosuch", "--csv --json x.png", "--csv", "--plots plots"],
}


@pytest.mark.parametrize("script", ARGUMENTS)
def test_bad_arguments(script, request, capsys):
    module = request.getfixturevalue(script)
    for arguments in ARGUMENTS[script]:
        with pytest.raises(SystemExit) as caught:
            module.main(arguments.split())
        assert caught.value.code == 2 and "error: " in capsys.readouterr().err.splitlines()[-1], arguments


OUTPUTS = {  # options, what is there before, words of the error
    "a pipe": (["--weights", "pipe"], None, ["cannot write pipe"]),  # not /dev/null, which root could lose
    "below a file": (["--weights", "taken/w.pt"], "taken", ["taken"]),
    "plot is a folder": (["--plots", "plots"], "plots/training.png/x", ["cannot write plots/training.png"]),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_that_cannot_be_written(case, train, tmp_path, monkeypatch, capsys):
    """Ends the run before it prints the network and trains."""
    monkeypatch.chdir(tmp_path)
    options, there, words = OUTPUTS[case]
    os.mkfifo("pipe")
    if there:
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).write_bytes(b"old")
    with pytest.raises((train.Error, OSError)) as caught:
        train.main([str(word) for word in (*STEP, *options)])
    assert all(word in str(caught.value) for word in words) and not capsys.readouterr().out
    assert files_below(tmp_path) == ({there.split("/")[-1]} if there else set())


def test_plots_without_matplotlib(tmp_path):
    for script, options in (("train.py", STEP), ("predict.py", ["image.png"])):
        result = uv_run(script, *options, "--plots", "plots", cwd=tmp_path)
        assert_one_error_line(result, f"uv run --with matplotlib {script}")


# Ends in the middle

FULL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"  # bytes in a file
KILLED = "import os, signal\nos.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)"
ENDS = {"full disk": (FULL, 1, 2), "killed": (KILLED, -signal.SIGKILL, 3)}


@pytest.mark.parametrize("case", ENDS)
def test_old_weights_outlive_a_failure_while_saving(case, tmp_path):
    code, status, files = ENDS[case]
    (tmp_path / "w.pt").write_bytes(b"old")
    result = run(sys.executable, driver(tmp_path, code), *STEP, "--weights", "w.pt", cwd=tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == b"old", result.stderr
    assert len(files_below(tmp_path)) == files  # the driver, the old weights and, when killed, the new ones
    if status > 0:
        assert_one_error_line(result, "File too large")
    assert result.returncode == status


def test_ctrl_c_in_training(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    options = ["--data-dir", SAMPLE, "--epochs", "1000", "--weights", "w.pt", "--json"]
    command = [sys.executable, REPO / "train.py", *options]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, preexec_fn=heed)
    try:
        said = b""
        while b"loss=" not in said:  # it trains
            said += (more := process.stderr.read(1))
            assert more, said
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and b"Traceback" not in said and files_below(tmp_path) == {"w.pt"}
    assert (tmp_path / "w.pt").read_bytes() == b"old"


def test_reader_of_stdout_leaves_early(trained, tmp_path):
    """`predict.py folder | head -1`: more lines than a pipe holds."""
    (tmp_path / "digits").mkdir()
    for number in range(400):
        digit().save(tmp_path / f"digits/{number:0200}.png")
    command = f"uv run {REPO}/predict.py --weights {trained.weights} --csv digits | head -1"
    result = run("bash", "-c", command, cwd=tmp_path)
    assert result.stdout.startswith("file,") and not re.search("Broken|Traceback", result.stderr)
