#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# exclude-newer-package = { torch = false, torchvision = false }
# ///

# %% What it is
"""Write requirements.txt: every package that `uv run` installs for the scripts, with versions, hashes and markers.

    uv run export_requirements.py                         requirements.txt for train.py and predict.py together
    uv run export_requirements.py --check                 is requirements.txt what it would write now?
    uv run export_requirements.py --format pylock.toml    PEP 751; cyclonedx1.5 is a bill of materials
    uv run export_requirements.py --help                  all options

uv resolves, for all platforms and for the Pythons that the scripts allow; the same scripts give the same bytes.
"""

# %% Imports and constants
import argparse
import difflib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SCRIPTS = [Path("train.py"), Path("predict.py")]
OUTPUTS = {"requirements.txt": "requirements.txt", "pylock.toml": "pylock.toml", "cyclonedx1.5": "sbom.cdx.json"}
BLOCK = re.compile(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$")  # PEP 723's own expression, for its only type


class Error(Exception):
    """Something that the user can put right; `main` prints it as one line."""


# %% Metadata
def read_metadata(script: Path) -> dict:
    """The PEP 723 metadata of a script; raises Error where there is not just one sound block of them."""
    try:
        blocks = BLOCK.findall(script.read_text(encoding="utf-8"))
        if len(blocks) != 1:
            raise Error(f"{script} has {len(blocks) or 'no'} `# /// script` blocks; it needs one, closed by `# ///`")
        metadata = tomllib.loads("".join(line[2:] or "\n" for line in blocks[0].splitlines(keepends=True)))
    except OSError as error:
        raise Error(f"cannot read {script} ({error.strerror}); name the scripts to export") from None
    except ValueError as error:  # no UTF-8, or no TOML
        raise Error(f"the metadata of {script} are broken ({error}); put its `# /// script` block right") from None
    if not isinstance(metadata.get("dependencies"), list):
        raise Error(f"the metadata of {script} have no list of dependencies; add `# dependencies = [...]`")
    return metadata


def merge(names: list[str], metadata: list[dict]) -> dict:
    """The metadata with the dependencies of all the scripts; raises Error where anything else in them differs."""
    for script, other in zip(names, metadata):
        for key in sorted((metadata[0].keys() | other.keys()) - {"dependencies"}):
            if metadata[0].get(key) != other.get(key):
                name = "[tool.uv]" if key == "tool" else key
                raise Error(f"{names[0]} and {script} differ in {name}; make it the same, or export each to its own --output")
    return {**metadata[0], "dependencies": [requirement for one in metadata for requirement in one["dependencies"]]}


def toml(value) -> str:
    """What tomllib read, as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)


# %% Resolution
def uv_export(name: str, metadata: dict, *options: str) -> str:
    """What `uv export --script` prints for a script with such metadata; raises Error with uv's reason."""
    environment = {key: value for key, value in os.environ.items() if key not in ("UV_FROZEN", "UV_LOCKED", "UV_WORKING_DIR")}
    command = [os.environ.get("UV") or "uv", "export", "--script", "script.py", "--no-header", *options]
    block = "".join(f"# {key} = {toml(value)}\n" for key, value in metadata.items())
    with tempfile.TemporaryDirectory() as folder:  # away from a pyproject.toml of somebody else, whose index uv would take
        Path(folder, "script.py").write_text(f"# /// script\n{block}# ///\n", encoding="utf-8")
        if Path("uv.toml").is_file():
            shutil.copy("uv.toml", folder)
        try:
            result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
        except OSError:
            raise Error("uv is not there; install it with `pip install uv`") from None
    if result.returncode:
        said = [re.sub("^(error|cause|hint): ", "", line.strip()) for line in result.stderr.splitlines() if line.strip()]
        reason = ": ".join([*said[:2], *said[2:][-1:]]).rstrip(".")
        advice = "connect to the network" if re.search("(?i)fetch|network", reason) else "put the metadata right"
        raise Error(f"uv cannot resolve {name} ({reason}); {advice} and run again")
    return result.stdout


def export(scripts: list[Path], format: str = "requirements.txt", hashes: bool = True) -> str:
    """The text of the file for all the scripts together; raises Error where one of them alone would get other versions."""
    names = [script.name if script.is_absolute() else script.as_posix() for script in scripts]
    metadata = [read_metadata(script) for script in scripts]
    both, merged = " and ".join(names), merge(names, metadata)
    options = [*(["--format", format] if format != "requirements.txt" else []), *([] if hashes else ["--no-hashes"])]
    calls = [(*one, "--no-hashes", "--no-annotate") for one in [*zip(names, metadata), (both, merged)]]
    with ThreadPoolExecutor() as pool:
        *plain, text = pool.map(lambda call: uv_export(*call), [*calls, (both, merged, *options)])
    *alone, together = [{line.split(" ;")[0] for line in lines.splitlines()} for lines in plain]  # name==version
    for name, packages in zip(names, alone):
        if missing := packages - together:
            raise Error(f"alone, {name} runs with {', '.join(sorted(missing))}, but {both} cannot together; pin it in each")
    if format == "cyclonedx1.5":  # uv puts a random number and the time into it
        bill = json.loads(text)
        del bill["serialNumber"], bill["metadata"]["timestamp"]
        return json.dumps(bill, indent=2) + "\n"
    command = ["uv", "run", "export_requirements.py", *(names if scripts != SCRIPTS else []), *options]
    return f"# Made by: {shlex.join(command)}\n{text}"


# %% Output
def write(path: Path, text: str) -> None:
    """Write `path` whole or not at all: a new file beside it takes its place at the end; raises Error where it cannot."""
    target = path.resolve()  # so that a link stays a link
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(text.encode())
        os.replace(temporary, target)
    except OSError as error:
        raise Error(f"cannot write {path} ({error.strerror}); name another file with --output") from None
    finally:
        if temporary.is_file():
            temporary.unlink()


def check(path: Path, text: str) -> None:
    """Raise Error, after a short diff on stdout, where `path` differs from `text`."""
    old = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    if old != text:
        diff = list(difflib.unified_diff(old.splitlines(), text.splitlines(), str(path), "now", n=0, lineterm=""))
        print(*diff[:20], *([f"… and {len(diff) - 20} lines more"] if len(diff) > 20 else []), sep="\n")
        raise Error(f"{path} is {'stale' if path.is_file() else 'not there'}; run again without --check to write it")


# %% Command line
def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write what `uv run` installs for scripts as requirements.txt, pylock.toml or SBOM.")
    add = parser.add_argument
    add("scripts", nargs="*", type=Path, metavar="SCRIPT", default=SCRIPTS, help="scripts with PEP 723 metadata (default: train.py predict.py)")
    add("--output", metavar="FILE", help="- is stdout (default: requirements.txt, pylock.toml or sbom.cdx.json, by the format)")
    add("--format", choices=OUTPUTS, default="requirements.txt", help="(default: %(default)s)")
    add("--no-hashes", action="store_true", help="leave the SHA-256 sums out of requirements.txt (default: off)")
    add("--check", action="store_true", help="write nothing; status 1 and a short diff where the file is stale (default: off)")
    args = parser.parse_args(argv)
    args.output = args.output or OUTPUTS[args.format]
    if args.no_hashes and args.format != "requirements.txt":
        parser.error("--no-hashes is for requirements.txt")
    if args.check and args.output == "-":
        parser.error("--check needs a file to compare with")
    if Path(args.output).resolve() in [script.resolve() for script in args.scripts]:
        parser.error(f"--output {args.output} is one of the scripts")
    return args


def run(args: argparse.Namespace) -> None:
    text = export(args.scripts, args.format, not args.no_hashes)
    if args.output == "-":
        sys.stdout.buffer.write(text.encode())
    elif args.check:
        check(Path(args.output), text)
        print(f"{args.output} is up to date")
    else:
        write(Path(args.output), text)
        print(f"wrote {args.output}")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None where it is closed
    sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot show
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: stopped; no file was changed")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that temporary files are removed
    main()
