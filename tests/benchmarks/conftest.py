import json

import pytest


@pytest.fixture
def run_command(tmp_path, capsys):
    """Runs a command; returns its status, its output and its JSON."""

    def run(command, *options: str):
        file = tmp_path / "out.json"
        status = command.main([*options, "--json", str(file)])
        content = json.loads(file.read_text()) if file.exists() else None
        return status, capsys.readouterr(), content

    return run


@pytest.fixture
def interrupt(monkeypatch):
    """Has a function of a command's module interrupted in its third call."""

    def interrupt(command, name):
        function, calls = getattr(command, name), []

        def interrupted(*args):
            calls.append(args)
            if len(calls) > 2:
                raise KeyboardInterrupt
            return function(*args)

        monkeypatch.setattr(command, name, interrupted)

    return interrupt
