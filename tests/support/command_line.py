"""The command line, run as a person runs it."""

import os
import subprocess
import sys


def funnel(*arguments, **environment):
    command = [
        sys.executable,
        "-c",
        "from pipelines.commands.cli import main; main()",
        *map(str, arguments),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
