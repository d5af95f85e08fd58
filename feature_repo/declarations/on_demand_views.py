"""On-demand views: from a Feast view with a function to what a release carries and runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from feast import FeatureView, OnDemandFeatureView

from feature_repo import columns as c
from feature_repo.declarations.checks import NAME, NAME_RULE, NUMERIC, without_experimental_warnings
from feature_repo.on_demand.function import function_text
from feature_repo.on_demand.view import Input, Mode, OnDemandError, OnDemandView, Owner, Values

_OWNERS: dict[str, Owner] = {c.USER: "user", c.ITEM: "item"}
_SAMPLES = 3


@dataclass(frozen=True)
class Source:
    """A view that an on-demand view may read.

    Attributes:
        registered: the view as it is registered with Feast.
        key: the column of its entity.
        readable: its features that can be read in a request.

    """

    registered: FeatureView
    key: str
    readable: tuple[str, ...]


@dataclass(frozen=True)
class DeclaredOnDemand:
    """An on-demand view that a ``features.py`` declares, checked.

    Attributes:
        definition: what is computed.
        registered: the view as it is registered with Feast.

    """

    definition: OnDemandView
    registered: OnDemandFeatureView


def declared_on_demand(
    view: OnDemandFeatureView, sources: Mapping[str, Source]
) -> DeclaredOnDemand:
    """Return an on-demand view, with its function tried on sample values.

    Args:
        view: as the ``features.py`` declares it.
        sources: the views that it may read, by name.

    Raises:
        ValueError: it cannot be used.

    """
    if not NAME.fullmatch(view.name):
        raise ValueError(NAME_RULE)
    if view.mode not in ("pandas", "python") or view.singleton:
        raise ValueError("its mode is 'pandas' or 'python', and singleton is false")
    if view.write_to_online_store or view.aggregations:
        raise ValueError("it is computed in the request, from sources: nothing is stored")
    if view.udf is None:
        raise ValueError("it has no function")
    fields = {field.name: field.dtype for field in view.features}
    for name, kind in fields.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"'{name}': {NAME_RULE}")
        if kind not in NUMERIC:
            raise ValueError(f"'{name}' is {kind}, and the ranker reads numbers only")

    inputs: list[Input] = []
    projections: list[Any] = []
    samples: list[Values] = []
    for projection in view.source_feature_view_projections.values():
        source = sources.get(projection.name)
        if source is None:
            raise ValueError(
                f"it reads view '{projection.name}', which is not one of {sorted(sources)}"
            )
        types = {field.name: field.dtype for field in source.registered.features}
        wanted = projection.desired_features or [f.name for f in projection.features]
        if not wanted or set(wanted) >= set(types):  # the whole view
            wanted = list(source.readable)
        unknown = sorted(set(wanted) - set(source.readable))
        if unknown or not wanted:
            raise ValueError(
                f"it reads {unknown} of view '{projection.name}', "
                f"where requests have {list(source.readable)}"
            )
        inputs += [
            Input(_OWNERS[source.key], projection.name, name, types[name] in NUMERIC)
            for name in wanted
        ]
        samples += [_sample(types[name]) for name in wanted]
        with without_experimental_warnings():
            projections.append(source.registered[wanted])
    for request in view.source_request_sources.values():
        inputs += [
            Input("request", request.name, field.name, field.dtype in NUMERIC)
            for field in request.schema
        ]
        samples += [_sample(field.dtype) for field in request.schema]

    definition = OnDemandView(
        view.name,
        tuple(fields),
        tuple(inputs),
        cast(Mode, view.mode),
        function_text(view.udf),
    )
    try:
        definition.compute(samples, _SAMPLES)
        definition.compute([sample[-1:] for sample in samples], 1)  # all are missing
        registered = _registered(view, definition, projections)
    except OnDemandError as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"its function fails on sample values and missing ones: {said}") from None
    return DeclaredOnDemand(definition, registered)


def _registered(
    view: OnDemandFeatureView, definition: OnDemandView, projections: list[Any]
) -> OnDemandFeatureView:
    """Return the view for Feast, over registered views."""
    registered = OnDemandFeatureView(
        name=view.name,
        sources=[*projections, *view.source_request_sources.values()],
        schema=view.features,
        mode=view.mode,
        udf=definition.function.load(),
        udf_string=definition.function.source,
        description=view.description,
        tags=view.tags,
        owner=view.owner,
    )
    try:
        registered.infer_features()  # 'feast apply' does so, and would end with a traceback
    except Exception as error:
        raise OnDemandError(f"{type(error).__name__}: {error}") from None
    return registered


def _sample(kind: Any) -> Values:
    """Return values of a type as a request may have them, the last one missing: ``[n]``."""
    if kind in NUMERIC:
        return np.array([1.0] * (_SAMPLES - 1) + [np.nan])
    value: Any = ["a"] if str(kind).startswith("Array") else "a"
    values = np.empty(_SAMPLES, dtype=object)
    values[:-1].fill(value)
    return values
