"""What a fork of ``tests.support.forked`` finds imported: commands and what they import late.

Without what only the export of a trained tower needs: 16 s, for the few forks that train.
"""

# ruff: noqa: E402, F401 - Feast is imported after its type checks are switched off
from feature_repo.stores.feast_checks import disable_feast_type_checks

disable_feast_type_checks()

import mlflow

import pipelines.commands.cli
import pipelines.erasure.erase
import pipelines.ingest.ingest
import pipelines.streaming.job
import pipelines.training.release
import pipelines.training.train
import pipelines.workflow.stages
import serving.process.server
