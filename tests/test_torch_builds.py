"""The line in a script's block that makes uv fetch the small CPU build of torch."""

import pytest
from conftest import ENV, REPO, SCRIPTS, run

LINE = '# torch-backend = "cpu"\n'  # README.md's, below [tool.uv]
INDEX = "https://download.pytorch.org/whl/cpu/torch/"


@pytest.mark.parametrize("script", SCRIPTS)
def test_uv_asks_the_index_of_cpu_builds(script, tmp_path):
    """Not every machine reaches PyTorch's index, so what counts is that uv asks it."""
    source = (REPO / script).read_text(encoding="utf-8")
    small = source.replace("# [tool.uv]\n", "# [tool.uv]\n" + LINE)
    assert small.count(LINE) == 1
    resolve = ["uv", "sync", "-v", "--dry-run", "--script", script]
    for text, asked in ((small, True), (source, False)):
        (tmp_path / script).write_text(text, encoding="utf-8")
        result = run(*resolve, cwd=tmp_path, env=ENV | {"UV_HTTP_RETRIES": "0"})
        assert (INDEX in result.stderr) == asked, result.stderr
        # Where the index answers, this is its build.
        assert result.returncode or ("+cpu" in result.stderr) == asked, result.stderr
