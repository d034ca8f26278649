#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///

# %% What it is
"""Write requirements.txt: what `uv run` installs for the scripts, with versions, hashes and markers.

    uv run export_requirements.py                         for train.py and predict.py together
    uv run export_requirements.py --check                 is requirements.txt up to date?
    uv run export_requirements.py --format pylock.toml    the same as a pylock.toml (PEP 751)
    uv run export_requirements.py --help                  all options

`uv export` takes one script; this merges the dependencies of several and lets it resolve them together.
The same scripts give the same bytes on every platform and Python.
"""

# %% Imports
import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

SCRIPTS = ["train.py", "predict.py"]
BLOCK = re.compile(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$")  # the expression in PEP 723


class Error(Exception):
    """Something the user can put right; `main` prints it as one line."""


# %% Metadata
def read_metadata(script: str) -> dict:
    """The PEP 723 metadata of a script; raises Error where there is no such block, or a broken one."""
    try:
        blocks = BLOCK.findall(Path(script).read_text(encoding="utf-8"))
        if len(blocks) != 1:
            raise Error(f"{script} has {len(blocks)} `# /// script` blocks; it needs one, closed by `# ///`")
        metadata = tomllib.loads(re.sub("(?m)^# ?", "", blocks[0]))
    except (OSError, ValueError) as error:  # no such file, not UTF-8, not TOML
        raise Error(f"cannot read the metadata of {script}: {error}") from None
    if not isinstance(metadata.get("dependencies"), list):
        raise Error(f"the metadata of {script} has no list of dependencies; add `# dependencies = [...]`")
    return metadata


def merge(scripts: list[str]) -> dict:
    """The metadata of the scripts with the dependencies of all; raises Error where anything else differs."""
    merged = read_metadata(scripts[0])
    for script in scripts[1:]:
        metadata = read_metadata(script)
        merged["dependencies"] += metadata.pop("dependencies")
        for key in sorted(merged.keys() | metadata.keys()):
            if key != "dependencies" and merged.get(key) != metadata.get(key):
                raise Error(f"{scripts[0]} and {script} differ in {key}; make them agree or export one alone")
    return merged


def to_toml(value) -> str:
    """A value that tomllib read, as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)


# %% Export
def export(scripts: list[str], *options: str) -> str:
    """What `uv export` with these options prints for the scripts together; raises Error where uv fails."""
    names = " and ".join(scripts)
    block = "".join(f"# {key} = {to_toml(value)}\n" for key, value in merge(scripts).items())
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder, "script.py")
        merged.write_text(f"# /// script\n{block}# ///\n", encoding="utf-8")
        command = [os.environ.get("UV", "uv"), "export", "--no-header", *options, "--script", str(merged)]
        try:
            text = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
        except FileNotFoundError:
            raise Error("there is no uv here; install it with `pip install uv`") from None
        except subprocess.CalledProcessError:
            raise Error(f"uv cannot resolve {names}; the lines above say why") from None
    return f"# Made by export_requirements.py from {names}\n{text}"


# %% Command line
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write what `uv run` installs to a file for pip.")
    add = parser.add_argument
    add("scripts", nargs="*", metavar="SCRIPT", default=SCRIPTS, help="default: train.py predict.py")
    add("--output", metavar="FILE", help="- is stdout (default: the name of the format)")
    add("--format", choices=["requirements.txt", "pylock.toml"], default="requirements.txt")
    add("--no-hashes", action="store_true", help="leave the SHA-256 sums out of requirements.txt")
    add("--check", action="store_true", help="write nothing; print what would change, if anything")
    args = parser.parse_args(argv)
    output = args.output or args.format
    if output in args.scripts:
        parser.error(f"--output {output} is one of the scripts")
    options = ["--format", args.format, *(["--no-hashes"] if args.no_hashes else [])]
    try:
        text = export(args.scripts, *options)
        if output == "-":
            sys.stdout.write(text)
        elif args.check:
            old = Path(output).read_text(encoding="utf-8")
            changes = [*difflib.unified_diff(old.splitlines(), text.splitlines(), output, n=0, lineterm="")]
            print("\n".join(changes) or f"{output} is up to date")
            if changes:
                raise Error(f"{output} is out of date; run again without --check to write it")
        else:
            Path(output).write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {output}")
    except (Error, OSError) as error:  # OSError: of the output file
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
