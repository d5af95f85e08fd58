"""``serve`` over a release and a working folder, as the command line calls it, on a port of its own."""

import sys
from pathlib import Path

from feature_repo.workspace import Workspace
from serving.process.server import serve


def main():
    root, release, port = sys.argv[1:]

    def started():
        sys.stdout.write("started\n")
        sys.stdout.flush()

    address = ("127.0.0.1", int(port))
    serve(Workspace(Path(root)), Path(release), address, workers=2, started=started)


if __name__ == "__main__":
    main()
