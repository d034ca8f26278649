"""export_requirements.py, on the package registry: its files hold what `uv run` installs."""

import re
import subprocess
import sys

import pytest
from conftest import ENV, REPO, assert_one_error_line, files_below, run, uv_run

SCRIPTS = ["train.py", "predict.py"]


def export(*arguments, cwd=REPO, **environment) -> subprocess.CompletedProcess:
    return uv_run("export_requirements.py", *arguments, cwd=cwd, env={**ENV, **environment})


def packages(text: str) -> set[str]:
    return set(re.findall(r"(?m)^(?: \+ )?([a-z0-9-]+==[^ \n]+)", text))


def script(*dependencies: str, more: str = "") -> str:
    return f'# /// script\n# requires-python = ">=3.11"\n# dependencies = {list(dependencies)}\n{more}# ///\n'


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with copies of the two scripts, and what a user exports from them in both formats."""
    folder = tmp_path_factory.mktemp("export")
    for name in SCRIPTS:
        (folder / name).write_bytes((REPO / name).read_bytes())
    for format in ("requirements.txt", "pylock.toml"):
        result = export("--format", format, cwd=folder)
        assert (result.returncode, result.stdout) == (0, f"wrote {format}\n"), result.stderr
    assert files_below(folder) == {*SCRIPTS, "requirements.txt", "pylock.toml"}  # no lock file
    return folder


# What the files hold


def test_both_formats_install_what_uv_run_installs(exported, tmp_path):
    installed = set()
    for name in SCRIPTS:
        assert run("uv", "run", "--python", sys.executable, REPO / name, "--help", cwd=REPO).returncode == 0
        python = run("uv", "python", "find", "--script", REPO / name, cwd=REPO).stdout.strip()
        installed |= packages(run("uv", "pip", "freeze", "--python", python, cwd=REPO).stdout)
    assert len(installed) > 10
    run("uv", "venv", "--python", sys.executable, "venv", cwd=tmp_path)
    for format in ("requirements.txt", "pylock.toml"):
        words = ["--dry-run", "--require-hashes", "--python", "venv", exported / format]
        result = run("uv", "pip", "sync", *words, cwd=tmp_path)
        assert packages(result.stderr) == installed, (format, result.stderr)


def test_form_of_requirements(exported):
    first, *rest = re.split(r"(?m)^(?=[a-z0-9])", (exported / "requirements.txt").read_text())
    assert first == "# Made by export_requirements.py from train.py and predict.py\n" and len(rest) > 30
    for package in rest:
        assert re.match(r"[a-z0-9-]+==[^ ]+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", package), package
    assert any("sys_platform == 'win32'" in package for package in rest)  # not for this platform alone
    assert not re.search(r"https?:|--index|/tmp|\d{4}-\d\d-\d\d", "".join(rest))


@pytest.mark.parametrize("format", ["requirements.txt", "pylock.toml"])
def test_same_bytes_again(format, exported):
    """From another Python and through stdout; `--check` agrees."""
    command = [sys.executable, REPO / "export_requirements.py", "--format", format]
    assert run(*command, "--output", "-", cwd=exported).stdout == (exported / format).read_text()
    assert run(*command, "--check", cwd=exported).stdout == f"{format} is up to date\n"


def test_several_scripts_and_their_exclude_newer(tmp_path):
    """Overlapping requirements merge, and exclude-newer holds: tqdm is that of the date, not today's."""
    more = '# [tool.uv]\n# exclude-newer = "2024-01-01T00:00:00Z"\n'
    (tmp_path / "x.py").write_text(script("tqdm", more=more))
    (tmp_path / "y.py").write_text(script("tqdm<5", "six==1.16.0", more=more))
    result = export("x.py", "y.py", "--no-hashes", "--output", "-", cwd=tmp_path)
    assert packages(result.stdout) == {"colorama==0.4.6", "six==1.16.0", "tqdm==4.66.1"}, result.stderr
    assert "from x.py and y.py" in result.stdout and "--hash" not in result.stdout


def test_check(tmp_path):
    (tmp_path / "x.py").write_text(script("tqdm==4.70.1"))
    output = tmp_path / "requirements.txt"
    assert_one_error_line(export("x.py", "--check", cwd=tmp_path), "requirements.txt")
    export("x.py", cwd=tmp_path)
    output.write_text(old := output.read_text().replace("tqdm==4.70.1", "tqdm==4.70.0"))
    result = export("x.py", "--check", cwd=tmp_path)
    assert_one_error_line(result, "requirements.txt is out of date", "without --check")
    assert "-tqdm==4.70.0 \\\n+tqdm==4.70.1 \\\n" in result.stdout and output.read_text() == old


# What goes wrong

PINNED = script("tqdm==4.70.1")
BAD_SCRIPTS = {  # the content of x.py, beside y.py, which needs tqdm==4.70.1; words of the error line
    "missing": (None, "cannot read the metadata of x.py"),
    "unclosed": ('# /// script\n# dependencies = ["tqdm"]\n', "x.py has 0 `# /// script` blocks"),
    "two blocks": (PINNED + "\n" + PINNED, "x.py has 2 `# /// script` blocks"),
    "not TOML": ("# /// script\n# dependencies = [\n# ///\n", "cannot read the metadata of x.py"),
    "no dependencies": ("# /// script\n# x = 1\n# ///\n", "x.py has no list of dependencies"),
    "other options": (script(more="# [tool.uv]\n# no-build = true\n"), "y.py and x.py differ in tool"),
    "conflict": (script("tqdm==4.70.0"), "uv cannot resolve y.py and x.py"),
}


@pytest.mark.parametrize("fault", BAD_SCRIPTS)
def test_bad_scripts(fault, tmp_path):
    content, words = BAD_SCRIPTS[fault]
    (tmp_path / "y.py").write_text(PINNED)
    if content:
        (tmp_path / "x.py").write_text(content)
    result = export("y.py", "x.py", cwd=tmp_path)
    says_uv, _, last = result.stderr.rstrip("\n").rpartition("\n")
    assert result.returncode == 1 and last.startswith("error: ") and words in last, result.stderr
    assert "Traceback" not in result.stderr and bool(says_uv) == ("uv cannot" in words)
    assert not (tmp_path / "requirements.txt").exists()


def test_bad_surroundings(tmp_path):
    (tmp_path / "x.py").write_text(PINNED)
    for output, status in {"no/such/folder.txt": 1, "x.py": 2}.items():
        assert_one_error_line(export("x.py", "--output", output, cwd=tmp_path), output, status=status)
    assert (tmp_path / "x.py").read_text() == PINNED
    result = export("x.py", cwd=tmp_path, UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "empty"))
    assert result.returncode == 1 and "error: uv cannot resolve x.py" in result.stderr, result.stderr
    python = [sys.executable, REPO / "export_requirements.py", "x.py"]
    assert_one_error_line(run(*python, cwd=tmp_path, env={"PATH": str(tmp_path)}), "pip install uv")
