"""The scripts of `make torture` run, and fail where something does; what they find is theirs to say."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "torture"
sys.path.insert(0, str(SCRIPTS))

from _trials import Case, options, tally, trials  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calls", "files", "words", "kills"])
def test_a_script_tries_one_case(name, tmp_path):
    words = [sys.executable, str(SCRIPTS / f"{name}.py"), "--only", "2", "--keep", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "the script failed" not in done.stdout
    assert "tried  failed" in done.stdout


def test_what_fails_is_counted_kept_and_named(tmp_path, capsys):
    def hang():
        while True:
            pass

    def swell():
        return None if len(bytearray(b"x") * (300 * 2**20)) else "never said"

    runs = [lambda: None, lambda: "wrong", lambda: 1 / 0, hang, swell, lambda: __import__("os").abort(), lambda: None]
    asked = options(None, tries=len(runs), minutes=1, argv=["--keep", str(tmp_path)])
    result = tally("tests/torture/none.py", asked)

    def case_of(number, folder):
        (folder / "input").write_text(str(number))
        return Case(f"kind {number}", "words", runs[number])

    trials(result, asked, case_of, batch=3, seconds=3, memory=100 * 2**20)
    assert result.close() == 1
    why = {number: reason for _, number, _, reason in result.failures}
    assert sorted(why) == [1, 2, 3, 4, 5]
    assert why[1] == "wrong"
    assert "ZeroDivisionError" in why[2]
    assert "no end" in why[3]
    assert "GiB of memory" in why[4]
    assert "SIGABRT" in why[5]
    assert (tmp_path / "none" / "1" / "input").read_text() == "1"
    assert "python tests/torture/none.py --seed 0 --only 5" in capsys.readouterr().out
