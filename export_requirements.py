#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["tomli-w==1.2.0"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# ///

# %% Start
"""Write requirements.txt for pip: what `uv run` installs, with versions and hashes.

    uv run export_requirements.py                        for all the scripts together
    uv run export_requirements.py train.py               for one of them
    uv run export_requirements.py --check                is requirements.txt up to date?
    uv run export_requirements.py --format pylock.toml   the same as a pylock.toml

`uv export` takes one script; this merges the metadata of several and lets it resolve
them together. The same scripts give the same bytes on every platform and Python.
`torch-backend` is the one setting that `uv export` leaves out.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import tomli_w

SCRIPTS = ["train.py", "predict.py", "read.py", "draw.py"]
# The expression that PEP 723 gives, for blocks of the type "script".
BLOCK = re.compile(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$")


class Error(Exception):
    """An error that the user can fix; the script prints it as one line."""


# %% Metadata
def read_metadata(script: str) -> dict:
    """Return the PEP 723 metadata of a script.

    Raises Error where the script has no such block, two of them or a broken one.
    """
    try:
        blocks = BLOCK.findall(Path(script).read_text(encoding="utf-8"))
        if len(blocks) != 1:
            raise ValueError(
                f"it has {len(blocks)} blocks from `# /// script` to `# ///`"
            )
        metadata = tomllib.loads(re.sub("(?m)^# ?", "", blocks[0]))
        if not isinstance(metadata.get("dependencies"), list):
            raise ValueError("it has no list of dependencies")
    except (OSError, ValueError) as error:  # ValueError: also not UTF-8 or not TOML
        raise Error(f"cannot read the metadata of {script}: {error}") from None
    return metadata


def merge(scripts: list[str]) -> dict:
    """Return the metadata of the first script with the dependencies of all.

    Raises Error where the scripts differ in anything else.
    """
    first, *others = scripts
    merged = read_metadata(first)
    for script in others:
        metadata = read_metadata(script)
        merged["dependencies"] += metadata["dependencies"]
        for key in sorted((merged | metadata).keys() - {"dependencies"}):
            if merged.get(key) != metadata.get(key):
                hint = "make them agree or export one alone"
                raise Error(f"{first} and {script} differ in `{key}`; {hint}")
    return merged


# %% Export
def export(scripts: list[str], *options: str) -> str:
    """Return what `uv export` with these options prints for the scripts together.

    Raises Error where uv fails.
    """
    names = ", ".join(scripts)
    metadata = tomli_w.dumps(merge(scripts))
    comment = re.sub("(?m)^", "# ", metadata.rstrip())
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder, "merged.py")
        merged.write_text(f"# /// script\n{comment}\n# ///\n", encoding="utf-8")
        uv = os.environ.get("UV", "uv")  # `uv run` sets it
        command = [uv, "export", "--no-header", *options, "--script", str(merged)]
        result = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if result.returncode:
        raise Error(f"uv cannot resolve {names}; the lines above say why")
    return f"# Made by export_requirements.py from {names}\n{result.stdout}"


def check(path: str, text: str) -> None:
    """Print how the file differs from the text; raises Error where it does."""
    # Of another encoding, as PowerShell's > writes, every line differs.
    old = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    changes = list(difflib.unified_diff(old, text.splitlines(), path, n=0, lineterm=""))
    if changes:
        print("\n".join(changes))
        raise Error(f"{path} is out of date; run again without --check to write it")
    print(f"{path} is up to date")


# %% Command line
def parse_args(argv: list[str] | None) -> argparse.Namespace:
    found = [name for name in SCRIPTS if Path(name).exists()]
    parser = argparse.ArgumentParser(
        description="Write what `uv run` installs for the scripts to a file for pip."
    )
    add = parser.add_argument
    add(
        "scripts",
        nargs="*",
        metavar="SCRIPT",
        default=found,
        help=f"default: those of {', '.join(SCRIPTS)} that are here",
    )
    add(
        "--output", metavar="FILE", help="- is stdout (default: the name of the format)"
    )
    add(
        "--format",
        choices=["requirements.txt", "pylock.toml"],
        default="requirements.txt",
        help="what to write (default: %(default)s)",
    )
    add("--no-hashes", action="store_true", help="leave out the SHA-256 sums")
    add("--check", action="store_true", help="write nothing; print what would change")
    args = parser.parse_args(argv)
    args.output = args.output or args.format
    if not args.scripts:
        parser.error("none of the scripts is in this folder; name a SCRIPT")
    if Path(args.output).resolve() in (Path(name).resolve() for name in args.scripts):
        parser.error(f"--output {args.output} is one of the scripts")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = ["--format", args.format]
    if args.no_hashes:
        options.append("--no-hashes")
    text = export(args.scripts, *options)
    if args.check:
        check(args.output, text)
    elif args.output == "-":
        sys.stdout.write(text)
    else:
        Path(args.output).write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (Error, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
