"""What ``feast apply`` finds: the views of the data set in the working folder in use.

Reading its spec (one small JSON file) is the only I/O at import, because the columns follow from
it.
"""

import os

from feature_repo.views import build
from feature_repo.workspace import Workspace, default_root

_workspace = Workspace(default_root().resolve())
_profile = os.environ.get("FUNNEL_PROFILE", "local")
_objects = build(_workspace.spec(), _workspace.features, _profile)  # type: ignore[arg-type]
globals().update({f"object_{number}": declared for number, declared in enumerate(_objects)})
