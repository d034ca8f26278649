"""export_requirements.py, on the package registry: its files hold what uv installs."""

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import REPO, SCRIPTS, assert_one_error_line, files_below, run, uv_run

FORMATS = ["requirements.txt", "pylock.toml"]


def export(*arguments, **options) -> CompletedProcess:
    return uv_run("export_requirements.py", *arguments, **options)


def packages(text: str) -> set[str]:
    """What stands as name==version at the start of a line, or after uv's plus."""
    return set(re.findall(r"(?m)^(?: \+ )?([a-z0-9-]+==[^ \n]+)", text))


def block(*dependencies: str, uv: str = "") -> str:
    """The block of a script."""
    metadata = f'requires-python = ">=3.11"\ndependencies = {list(dependencies)}\n{uv}'
    comment = re.sub("(?m)^", "# ", metadata.strip())
    return f"# /// script\n{comment}\n# ///\n"


PINNED = block("tqdm==4.70.1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with copies of the scripts, and what a user exports there."""
    folder = tmp_path_factory.mktemp("export")
    for name in SCRIPTS:
        shutil.copy(REPO / name, folder)
    for format in FORMATS:
        result = export("--format", format, cwd=folder)
        assert result.stdout == f"wrote {format}\n", result.stderr
    assert files_below(folder) == {*SCRIPTS, *FORMATS}  # no lock file
    return folder


# %% What the files hold
def test_both_formats_install_what_uv_run_installs(exported, trained, tmp_path):
    """`trained` has built the environments of the scripts."""
    installed = set()
    for name in SCRIPTS:
        find = run("uv", "python", "find", "--script", REPO / name, cwd=REPO)
        python = ["--python", find.stdout.strip()]
        installed |= packages(run("uv", "pip", "freeze", *python, cwd=REPO).stdout)
    assert len(installed) > 10
    run("uv", "venv", *python, "venv", cwd=tmp_path)
    for format in FORMATS:
        words = ["--dry-run", "--require-hashes", "--python", "venv"]
        result = run("uv", "pip", "sync", *words, exported / format, cwd=tmp_path)
        assert packages(result.stderr) == installed, (format, result.stderr)


def test_form_of_requirements(exported):
    """Not for this platform alone, and without the place where it was made."""
    text = (exported / "requirements.txt").read_text(encoding="utf-8")
    first, *rest = re.split(r"(?m)^(?=[a-z0-9])", text)
    assert first == f"# Made by export_requirements.py from {', '.join(SCRIPTS)}\n"
    pinned = r"[a-z0-9-]+==[^ ]+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}"
    assert len(rest) > 30 and all(re.match(pinned, package) for package in rest)
    assert any("sys_platform == 'win32'" in package for package in rest)
    assert not re.search(r"https?:|--index|/tmp", "".join(rest))


@pytest.mark.parametrize("format", FORMATS)
def test_same_bytes_again(format, exported):
    """Also through stdout; `--check` agrees."""
    options = ["--format", format]
    result = export(*options, "--output", "-", cwd=exported)
    assert result.stdout == (exported / format).read_text(encoding="utf-8")
    result = export(*options, "--check", cwd=exported)
    assert result.stdout == f"{format} is up to date\n"


def test_dependencies_merge_and_exclude_newer_holds(tmp_path):
    """tqdm is that of the date, not today's; those that are here are the default."""
    assert_one_error_line(export(cwd=tmp_path), "name a SCRIPT", status=2)
    uv = '[tool.uv]\nexclude-newer = "2024-01-01T00:00:00Z"'
    (tmp_path / "draw.py").write_text(block("tqdm", uv=uv))
    (tmp_path / "train.py").write_text(block("tqdm<5", "six==1.16.0", uv=uv))
    (tmp_path / "other.py").write_text(block("numpy"))
    result = export("--no-hashes", "--output", "-", cwd=tmp_path)
    expected = {"colorama==0.4.6", "six==1.16.0", "tqdm==4.66.1"}
    assert packages(result.stdout) == expected, result.stderr


def test_check_shows_what_would_change(tmp_path):
    (tmp_path / "x.py").write_text(PINNED)
    output = tmp_path / "requirements.txt"
    result = export("x.py", "--check", cwd=tmp_path)
    assert_one_error_line(result, "requirements.txt")  # there is none
    export("x.py", cwd=tmp_path)
    text = output.read_text()
    # PowerShell's > writes UTF-16.
    for old in (text.replace("4.70.1", "4.70.0").encode(), text.encode("utf-16")):
        output.write_bytes(old)
        result = export("x.py", "--check", cwd=tmp_path)
        assert_one_error_line(result, "requirements.txt is out of date", "--check")
        assert "\n+tqdm==4.70.1 \\\n" in result.stdout
        assert output.read_bytes() == old


# %% What goes wrong
UNREADABLE = "cannot read the metadata of x.py"
# The content of x.py, beside y.py, which is PINNED; words of the error line.
BAD_SCRIPTS = {
    "missing": (None, UNREADABLE),
    "unclosed": (PINNED.removesuffix("# ///\n"), f"{UNREADABLE}: it has 0 blocks"),
    "two blocks": (PINNED + "\n" + PINNED, f"{UNREADABLE}: it has 2 blocks"),
    "not TOML": ("# /// script\n# dependencies = [\n# ///\n", UNREADABLE),
    "no list": ("# /// script\n# x = 1\n# ///\n", "no list of dependencies"),
    "options": (block(uv="[tool.uv]\nno-build = true"), "y.py and x.py differ in"),
    "conflict": (block("tqdm==4.70.0"), "uv cannot resolve y.py, x.py"),
}


@pytest.mark.parametrize("fault", BAD_SCRIPTS)
def test_bad_scripts(fault, tmp_path):
    content, words = BAD_SCRIPTS[fault]
    (tmp_path / "y.py").write_text(PINNED)
    if content:
        (tmp_path / "x.py").write_text(content)
    result = export("y.py", "x.py", cwd=tmp_path)
    said_by_uv, _, last = result.stderr.strip().rpartition("\n")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last.startswith("error: ") and words in last, result.stderr
    assert bool(said_by_uv) == (fault == "conflict")
    assert not (tmp_path / "requirements.txt").exists()


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "x.py").write_text(PINNED)
    result = export("x.py", "--output", "no/such/folder.txt", cwd=tmp_path)
    assert_one_error_line(result, "no/such/folder.txt")
    for name in ("x.py", "./x.py", tmp_path / "x.py"):
        result = export("x.py", "--output", name, cwd=tmp_path)
        assert_one_error_line(result, "x.py is one of the scripts", status=2)
    assert (tmp_path / "x.py").read_text() == PINNED
