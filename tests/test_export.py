"""export_requirements.py, on the package registry and on an index of tiny wheels that the test makes."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ENV, REPO, assert_one_error_line, run, uv_run

SCRIPTS = ["train.py", "predict.py"]
DEAD = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}  # the discard port: nobody listens


def export(*arguments, cwd=REPO, **environment) -> subprocess.CompletedProcess:
    return uv_run("export_requirements.py", *arguments, cwd=cwd, env={**ENV, **environment})


def packages(requirements: str) -> set[str]:
    return set(re.findall(r"(?m)^[a-z0-9-]+==[^ \n]+", requirements))


# An index of tiny wheels


def wheel(name: str, version: str, requires: list[str] = (), files: dict[str, str] | None = None) -> tuple[str, bytes]:
    """The file name and content of a wheel for any Python."""
    info = f"{name}-{version}.dist-info"
    metadata = "".join([f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {r}\n" for r in requires)])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in (files or {f"{name}.py": f"__version__ = {version!r}\n"}).items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


def serve_index(server, root: str, wheels: list[tuple[str, bytes]], uploaded: str | None = "2026-01-01T00:00:00Z") -> str:
    """Put a package index below `root` on the server: PEP 691 with upload times, or plain PEP 503 without any; its URL."""
    pages = {}
    for filename, data in wheels:
        server.answers[f"/{root}/-/{filename}"] = data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = next(name for name in archive.namelist() if name.endswith("/METADATA"))
            server.answers[f"/{root}/-/{filename}.metadata"] = archive.read(info)
        pages.setdefault(filename.split("-")[0], []).append((filename, data))
    for name, files in pages.items():
        hashes = [(filename, f"/{root}/-/{filename}", hashlib.sha256(data).hexdigest()) for filename, data in files]
        if uploaded:
            listed = [{"filename": f, "url": url, "hashes": {"sha256": h}, "upload-time": uploaded, "core-metadata": True} for f, url, h in hashes]
            page = {"meta": {"api-version": "1.1"}, "name": name, "files": listed, "versions": []}
            content_type, body = "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()
        else:
            links = "".join(f'<a href="{url}#sha256={h}" data-core-metadata="true">{f}</a>' for f, url, h in hashes)
            content_type, body = "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()

        def answer(handler, content_type=content_type, body=body):
            handler.send_response(200)
            handler.send_header("Content-Type", content_type)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        server.answers[f"/{root}/{name}/"] = answer
    return f"{server.url}{root}"


def script(*dependencies: str, more: str = "") -> str:
    return f'# /// script\n# requires-python = ">=3.11"\n# dependencies = {json.dumps(dependencies)}\n{more}# ///\n'


@pytest.fixture
def index(server, tmp_path):
    """Environment variables for an index with a 1 and 2, and b 1 and 2 that needs a; nothing comes from or stays in uv's cache."""
    wheels = [wheel("a", "1"), wheel("a", "2"), wheel("b", "1", ["a"]), wheel("b", "2", ["a"])]
    return {"UV_DEFAULT_INDEX": serve_index(server, "index", wheels), "UV_CACHE_DIR": str(tmp_path / "cache")}


# What the file holds


@pytest.fixture(scope="module")
def requirements(tmp_path_factory):
    """requirements.txt as a user makes it, in a copy of the two scripts."""
    folder = tmp_path_factory.mktemp("export")
    for name in SCRIPTS:
        (folder / name).write_bytes((REPO / name).read_bytes())
    result = export(cwd=folder)
    assert (result.returncode, result.stdout) == (0, "wrote requirements.txt\n"), result.stderr
    assert {path.name for path in folder.iterdir()} == {*SCRIPTS, "requirements.txt"}  # no lock file, no temporary file
    return folder / "requirements.txt"


def test_holds_what_uv_run_installs(requirements):
    installed = set()
    for name in SCRIPTS:
        assert run("uv", "run", "--python", sys.executable, REPO / name, "--help", cwd=REPO).returncode == 0
        python = run("uv", "python", "find", "--script", REPO / name, cwd=REPO).stdout.strip()
        frozen = packages(run("uv", "pip", "freeze", "--python", python, cwd=REPO).stdout)
        assert len(frozen) > 10 and frozen <= packages(requirements.read_text()), name
        installed |= frozen
    plan = run("uv", "pip", "install", "--dry-run", "--require-hashes", "-r", requirements, "--python", python, cwd=REPO)
    assert plan.returncode == 0, plan.stderr
    assert {line[3:] for line in plan.stderr.splitlines() if line.startswith(" + ")} == installed - frozen


def test_single_scripts_agree_with_both(requirements):
    both = packages(requirements.read_text())
    singles = [packages(export("--no-hashes", "--output", "-", REPO / name).stdout) for name in SCRIPTS]
    assert singles[0] | singles[1] == both and all(len(single) > 30 for single in singles)


def test_form(requirements):
    text = requirements.read_text()
    lines = text.splitlines()
    assert lines[0] == "# Made by: uv run export_requirements.py"
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert len(blocks) > 30
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==[0-9][^ ]*( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", block), block
    assert re.search(r"(?m)^colorama==.* ; sys_platform == 'win32'", text) and "python_full_version < '3.12'" in text
    assert not re.search(r"https?:|--index|--find-links|/tmp|\d{4}-\d\d-\d\d|uv export", text) and str(REPO) not in text


def test_same_bytes_anywhere_and_check(requirements, tmp_path):
    theirs = '[project]\nname = "theirs"\nversion = "1"\ndependencies = ["nosuchpackage"]\n[tool.uv]\nindex-url = "http://127.0.0.1:9/"\n'
    (tmp_path / "pyproject.toml").write_text(theirs)
    for name in SCRIPTS:
        (tmp_path / name).write_bytes((REPO / name).read_bytes())
    result = run("python", REPO / "export_requirements.py", "--output", "-", cwd=tmp_path)
    assert result.stdout == requirements.read_text(), result.stderr
    assert export("--check", cwd=requirements.parent).stdout == "requirements.txt is up to date\n"


def test_later_uploads_change_nothing(server, tmp_path):
    """What the index has got since exclude-newer is not there."""
    (tmp_path / "x.py").write_text(script("b", more='# [tool.uv]\n# exclude-newer = "2026-02-01T00:00:00Z"\n'))
    old = [wheel("a", "1"), wheel("b", "1", ["a"])]
    results = []
    for round in ("first", "second"):
        environment = {"UV_DEFAULT_INDEX": serve_index(server, round, old), "UV_CACHE_DIR": str(tmp_path / round)}
        if round == "second":
            url = serve_index(server, "new", [wheel("a", "2")], uploaded="2026-03-01T00:00:00Z")
            environment |= {"UV_INDEX": url, "UV_INDEX_STRATEGY": "unsafe-best-match"}
        results.append(export("x.py", "--output", "-", cwd=tmp_path, **environment))
    assert results[0].stdout == results[1].stdout and packages(results[0].stdout) == {"a==1", "b==1"}, results[1].stderr
    assert "/new/a/" in server.requests
    assert results[0].stdout.startswith("# Made by: uv run export_requirements.py x.py\n") and "127.0.0.1" not in results[0].stdout


def test_check_shows_what_is_stale(index, tmp_path):
    (tmp_path / "x.py").write_text(script("b==1"))
    options = {"cwd": tmp_path, **index}
    result = export("x.py", "--check", **options)
    assert_one_error_line(result, "requirements.txt is not there")
    assert export("x.py", **options).returncode == 0
    before = (tmp_path / "requirements.txt").read_bytes()
    (tmp_path / "x.py").write_text(script("b==2"))
    result = export("x.py", "--check", **options)
    assert_one_error_line(result, "requirements.txt is stale")
    assert "-b==1" in result.stdout and "+b==2" in result.stdout and len(result.stdout.splitlines()) <= 21
    assert (tmp_path / "requirements.txt").read_bytes() == before
    assert export("x.py", **options).returncode == 0 and export("x.py", "--check", **options).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.py", "requirements.txt", "cache"}


def test_uv_toml_of_the_folder_counts_as_in_uv_run(index, tmp_path):
    (tmp_path / "x.py").write_text(script("b==1"))
    (tmp_path / "uv.toml").write_text(f'[[index]]\nurl = "{index.pop("UV_DEFAULT_INDEX")}"\ndefault = true\n')
    result = export("x.py", "--no-hashes", "--output", "-", cwd=tmp_path, UV_LOCKED="1", **index)
    assert packages(result.stdout) == {"a==2", "b==1"}, result.stderr


# The other formats


def test_pylock_installs(requirements, tmp_path):
    folder = requirements.parent
    assert export("--format", "pylock.toml", cwd=folder).stdout == "wrote pylock.toml\n"
    assert (folder / "pylock.toml").read_text().startswith("# Made by: uv run export_requirements.py --format pylock.toml\n")
    assert run("uv", "venv", "venv", cwd=tmp_path).returncode == 0
    python = tmp_path / "venv/bin/python"
    for file in ("pylock.toml", "requirements.txt"):  # the second finds nothing left to do
        result = run("uv", "pip", "sync", "--require-hashes", "--python", python, folder / file, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        if file == "requirements.txt":
            assert not re.search("(?m)^ [+-~] ", result.stderr), result.stderr
    result = run(python, REPO / "train.py", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(repr(e) if (e := JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())) else 0)
"""


def test_bill_of_materials(requirements):
    folder = requirements.parent
    contents = []
    for _ in range(2):
        assert export("--format", "cyclonedx1.5", cwd=folder).stdout == "wrote sbom.cdx.json\n"
        contents.append((folder / "sbom.cdx.json").read_text())
    assert contents[0] == contents[1]
    bill = json.loads(contents[0])
    assert {f"{c['name']}=={c['version']}" for c in bill["components"] if "version" in c} == packages(requirements.read_text())
    for component in bill["components"]:
        del component.get("externalReferences", [])[1:]  # the validator takes half a minute for all the files of each package
    validator = ["uv", "run", "--no-project", "--with", "cyclonedx-python-lib[json-validation]==11.12.0", "python", "-c", VALIDATE]
    for change, status in ({}, 0), ({"serialNumber": "7"}, 1):
        (folder / "short.json").write_text(json.dumps(bill | change))
        result = run(*validator, folder / "short.json", cwd=folder)
        assert result.returncode == status, result.stderr


# What goes wrong

BAD = {  # the second script, or both, and the words
    "missing": (None, "cannot read x.py"),
    "no metadata": ("print(1)\n", "x.py has no `# /// script` blocks"),
    "unclosed": ('# /// script\n# dependencies = ["a"]\n', "x.py has no `# /// script` blocks"),
    "two blocks": (script("a") + "\n" + script("a"), "x.py has 2 `# /// script` blocks"),
    "broken": ("# /// script\n# dependencies = [\n# ///\n", "the metadata of x.py are broken"),
    "not UTF-8": (b"# \xff\n" + script("a").encode(), "the metadata of x.py are broken"),
    "no dependencies": ('# /// script\n# requires-python = ">=3.11"\n# ///\n', "x.py have no list of dependencies"),
    "no such package": (script("a", "nosuch"), "uv cannot resolve x.py", "nosuch"),
    "no requirement": (script("a = 2"), "uv cannot resolve x.py"),
    "conflict": (script("a==1"), "a==1", "a==2", "unsatisfiable"),
    "other [tool.uv]": (script("a==2", more='# [tool.uv]\n# exclude-newer = "2026-02-01T00:00:00Z"\n'), "y.py and x.py differ in [tool.uv]"),
    "other Python": (script("a==2").replace("3.11", "3.12"), "differ in requires-python"),
    "wrong [tool.uv]": ([script("a", more="# [tool.uv]\n# exclude-newer = 7\n")] * 2, "uv cannot resolve y.py"),
    "other versions alone": ([script("a==1"), script("b==2")], "alone, x.py runs with a==2, but y.py and x.py cannot"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_scripts_are_one_line(fault, index, tmp_path):
    contents, *words = BAD[fault]
    for name, content in zip(["y.py", "x.py"], contents if isinstance(contents, list) else [script("a==2"), contents]):
        if content:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "requirements.txt").write_text("old\n")
    result = export("y.py", "x.py", cwd=tmp_path, **index)
    assert_one_error_line(result, *words)
    assert str(tmp_path) not in result.stderr and result.stdout == ""
    assert (tmp_path / "requirements.txt").read_text() == "old\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_different_requirements_may_mean_the_same_versions(index, tmp_path):
    (tmp_path / "x.py").write_text(script("a==2"))
    (tmp_path / "y.py").write_text(script("b<=2"))
    result = export("y.py", "x.py", "--no-hashes", "--output", "-", cwd=tmp_path, **index)
    assert result.stdout == "# Made by: uv run export_requirements.py y.py x.py --no-hashes\na==2\n    # via b\nb==2\n", result.stderr


def test_no_network_is_one_line(tmp_path):
    (tmp_path / "x.py").write_text(script("a"))
    (tmp_path / "requirements.txt").write_text("old\n")
    for environment in (DEAD, {"UV_OFFLINE": "1"}):
        result = export("x.py", cwd=tmp_path, UV_CACHE_DIR=str(tmp_path / "cache"), **environment)
        assert_one_error_line(result, "uv cannot resolve x.py", "connect to the network")
    assert (tmp_path / "requirements.txt").read_text() == "old\n"


def test_no_uv_is_one_line(tmp_path):
    (tmp_path / "x.py").write_text(script("a"))
    environment = {name: value for name, value in ENV.items() if name != "UV"} | {"PATH": str(tmp_path)}
    result = run(sys.executable, REPO / "export_requirements.py", "x.py", cwd=tmp_path, env=environment)
    assert_one_error_line(result, "pip install uv")


def test_unwritable_output_is_one_line(index, tmp_path):
    (tmp_path / "x.py").write_text(script("a"))
    (tmp_path / "folder").mkdir()
    for output in ("no/such/folder/r.txt", "folder", "x.py/r.txt"):
        assert_one_error_line(export("x.py", "--output", output, cwd=tmp_path, **index), f"cannot write {output}", "--output")
    assert_one_error_line(export("x.py", "--output", "x.py", cwd=tmp_path, **index), "one of the scripts", status=2)
    assert (tmp_path / "x.py").read_text() == script("a")
    assert {path.name for path in tmp_path.rglob("*") if "cache" not in path.parts} == {"x.py", "folder"}


def test_stdout_closed(index, tmp_path):
    (tmp_path / "x.py").write_text(script("a"))
    command = ["sh", "-c", f"exec {sys.executable} {REPO}/export_requirements.py x.py --output r.txt >&-"]
    result = run(*command, cwd=tmp_path, env={**ENV, **index})
    assert (result.returncode, result.stderr) == (0, "") and "a==2" in (tmp_path / "r.txt").read_text()


def test_stopped(server, tmp_path):
    """SIGTERM while uv waits for a silent index: one line, no debris."""
    (tmp_path / "x.py").write_text(script("a"))
    (tmp_path / "tmp").mkdir()
    server.answers["/simple/a/"] = lambda handler: time.sleep(4)
    environment = {**ENV, "UV_DEFAULT_INDEX": server.url + "simple", "UV_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp"), "UV_HTTP_RETRIES": "0"}  # fmt: skip
    process = subprocess.Popen([sys.executable, REPO / "export_requirements.py", "x.py"], cwd=tmp_path, env=environment,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not server.requests:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and stderr == "error: stopped; no file was changed\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"x.py", "tmp", "cache"} and not list((tmp_path / "tmp").iterdir())
