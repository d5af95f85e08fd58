"""What ``feast apply`` finds: the views of the data set in the working folder in use.

Reading its spec (one small JSON file) is the only I/O at import, because the columns follow from
it.
"""

from feature_repo.declarations.feast_objects import build
from feature_repo.settings import read_settings
from feature_repo.workspace import Workspace, default_root

_workspace = Workspace(default_root().resolve())
_objects = build(
    _workspace.spec(), _workspace.features, read_settings().profile, _workspace.declarations
)
globals().update({f"object_{number}": declared for number, declared in enumerate(_objects)})
