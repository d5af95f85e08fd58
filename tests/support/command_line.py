"""The command line: in this process, which costs no imports, or in one of its own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch


def funnel(*arguments, **environment):
    """Run ``funnel`` in this process; return its exit code and what it wrote."""
    from pipelines.commands.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    command = ["funnel", *map(str, arguments)]
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def funnel_process(*arguments, **environment):
    """Run ``funnel`` as a person does, in a process of its own."""
    command = [sys.executable, "-c", "from pipelines.commands.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
