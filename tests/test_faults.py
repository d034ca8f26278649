"""What goes wrong for a user ends with one line, `error: ...`, at a status of its own, and nothing is lost."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ENV, REPO, SAMPLE, assert_one_error_line, driver, files_below, run, uv_run

STEP = ["--data-dir", SAMPLE, "--epochs", 0.02]


@pytest.fixture(scope="module")
def state(train):
    """The weights of an untrained network."""
    torch.manual_seed(7)
    return train.SimpleCNN().state_dict()


# Weights


class Code:
    """A pickle of it makes a folder when it is read without care."""

    def __reduce__(self):
        return (os.mkdir, ("made-by-weights",))


def changed(name: str, value):
    return lambda state: state | {name: value(state[name])}


def without(name: str):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


WEIGHTS = {  # what torch.save writes, and words of the error
    "missing key": (without("conv2.bias"), ["Missing key", "conv2.bias", "train.py", "predict.py"]),
    "extra key": (lambda state: state | {"fc3.bias": torch.zeros(1)}, ["Unexpected key", "fc3.bias"]),
    "another shape": (changed("fc1.bias", lambda t: t[:64].clone()), ["fc1.bias", "[64]", "[128]"]),
    "no tensor": (changed("conv1.bias", lambda t: t.tolist()), ["conv1.bias"]),
    "NaN": (changed("conv2.weight", lambda t: t * float("nan")), ["not finite"]),
    "infinity": (changed("fc2.bias", lambda t: t + float("inf")), ["not finite"]),
    "a list": (lambda state: list(state.values()), ["does not fit"]),
    "a number": (lambda state: 7, ["does not fit"]),
    "nested": (lambda state: {"model": state}, ["Missing key"]),
    "code": (lambda state: {"conv1.weight": Code()}, ["no plain state_dict"]),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_another_network(case, state, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, words = WEIGHTS[case]
    torch.save(change(state), "w.pt")
    with pytest.raises(predict.Error) as caught:
        predict.load_weights("w.pt")
    assert all(word in str(caught.value) for word in ["w.pt", *words]), caught.value
    assert files_below(tmp_path) == {"w.pt"} and not (tmp_path / "made-by-weights").exists()


FILES = {"empty": b"", "no archive": b"no weights " * 99, "cut off": None}


@pytest.mark.parametrize("case", FILES)
def test_damaged_weights(case, trained, predict, tmp_path):
    (tmp_path / "w.pt").write_bytes(trained.weights.read_bytes()[:-500] if FILES[case] is None else FILES[case])
    with pytest.raises(predict.Error, match="w.pt does not fit"):
        predict.load_weights(str(tmp_path / "w.pt"))


def test_weights_as_a_user_meets_them(state, tmp_path):
    torch.save(without("fc1.bias")(state), tmp_path / "other.pt")
    (tmp_path / "folder").mkdir()
    for name, words in {"nosuch.pt": ["uv run train.py"], "folder": ["folder"], "other.pt": ["fc1.bias"],
                        "http://127.0.0.1:9/w.pt": ["http://127.0.0.1:9/w.pt", "refused"]}.items():  # fmt: skip
        assert_one_error_line(uv_run("predict.py", "--weights", name, cwd=tmp_path), name, *words)


# Arguments and outputs

ARGUMENTS = {
    "train.py": [["--epochs", "0"], ["--epochs", "nan"], ["--epochs", "many"], ["--lr", "-1"], ["--lr", "inf"], ["--batch-size", "2.5"],
                 ["--seed", "x"], ["--device", "tpu"], ["--nosuch"], ["image.png"]],
    "predict.py": [["--nosuch"], ["--csv", "--json", "image.png"], ["--csv"], ["--plots", "plots"], ["--report", "image.png"]],
}  # fmt: skip


@pytest.mark.parametrize("script", ARGUMENTS)
def test_bad_arguments(script, tmp_path, train, predict, capsys):
    module = {"train.py": train, "predict.py": predict}[script]
    for arguments in ARGUMENTS[script]:
        with pytest.raises(SystemExit) as caught:
            module.main(arguments)
        assert caught.value.code == 2 and "error: " in capsys.readouterr().err.splitlines()[-1], arguments
    assert_one_error_line(uv_run(script, *ARGUMENTS[script][0], cwd=tmp_path), ARGUMENTS[script][0][0], status=2)


def test_batch_size_that_does_not_fit(tmp_path):
    for batch_size in ("0", "-5", "4001"):
        result = uv_run("train.py", *STEP, "--batch-size", batch_size, cwd=tmp_path)
        assert_one_error_line(result, f"--batch-size {batch_size} is not", "4000")


OUTPUTS = {  # options, what is there before, words of the error
    "a folder": (["--weights", "taken"], "taken/x", ["cannot write taken"]),
    "a device": (["--weights", "/dev/null"], None, ["cannot write /dev/null"]),
    "below a file": (["--weights", "taken/w.pt"], "taken", ["taken"]),
    "plot is a folder": (["--plots", "plots"], "plots/training.png/x", ["cannot write plots/training.png"]),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_that_cannot_be_written_ends_before_the_training(case, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", None)
    options, there, words = OUTPUTS[case]
    if there:
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).write_bytes(b"old")
    with pytest.raises((train.Error, OSError)) as caught:
        train.main([str(word) for word in (*STEP, *options)])
    assert all(word in str(caught.value) for word in words)
    assert files_below(tmp_path) == ({there.split("/")[-1]} if there else set())


def test_plots_without_matplotlib(tmp_path):
    for script, options in (("train.py", STEP), ("predict.py", ["image.png"])):
        result = uv_run(script, *options, "--plots", "plots", cwd=tmp_path)
        assert_one_error_line(result, f"uv run --with matplotlib {script}")


def test_links_stay_links(train, state, tmp_path):
    (tmp_path / "link.pt").symlink_to("w.pt")
    train.save(train.SimpleCNN(), tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and files_below(tmp_path) == {"link.pt", "w.pt"}


# Ends in the middle

FULL = """import resource
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file grows beyond 0.1 MB, as on a full disk"""
KILLED = """import os
import signal
import torch
save = torch.save
def killed(state, file):
    save(state, file)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed"""


@pytest.mark.parametrize(("code", "status"), [(FULL, 1), (KILLED, -signal.SIGKILL)], ids=["full disk", "killed"])
def test_old_weights_outlive_a_failure_while_saving(code, status, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    result = run(sys.executable, driver(tmp_path, code), *STEP, "--weights", "w.pt", cwd=tmp_path)
    assert result.returncode == status and (tmp_path / "w.pt").read_bytes() == b"old", result.stderr
    if status == 1:
        assert_one_error_line(result, "File too large")
        assert files_below(tmp_path) == {"driver.py", "w.pt"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_in_training(number, status, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    command = [sys.executable, REPO / "train.py", "--data-dir", SAMPLE, "--epochs", "1000", "--weights", "w.pt"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = b""
        while b"loss=" not in said:  # it trains
            said += process.stderr.read(1)
        process.send_signal(number)
        said += process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status and b"Traceback" not in said and files_below(tmp_path) == {"w.pt"}
    assert (tmp_path / "w.pt").read_bytes() == b"old"


def test_reader_of_stdout_leaves_early(trained, tmp_path):
    """`predict.py folder | head -1`: more lines than a pipe holds."""
    from PIL import Image

    (tmp_path / "digits").mkdir()
    image = Image.new("L", (28, 28))
    image.paste(255, (12, 4, 16, 24))
    for number in range(400):
        image.save(tmp_path / f"digits/{number:0200}.png")
    command = f"uv run {REPO}/predict.py --weights {trained.weights} --csv digits | head -1"
    result = run("bash", "-c", command, cwd=tmp_path)
    assert result.stdout.startswith("file,") and "roken" not in result.stderr and "Traceback" not in result.stderr
