"""`capstan` called as a person calls it, within the process of the test."""

import sys

import pytest

from capstan_cli import main


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int | str | None, str, str]:
    """Exit code, stdout and stderr; nobody is ever shown a traceback."""
    monkeypatch.setattr(sys, "argv", ["capstan", *map(str, arguments)])
    code: int | str | None = 0
    try:
        main.main()
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err
