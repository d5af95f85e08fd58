"""Sampled softmax over in-batch and uniform negatives, with logQ correction.

The correction subtracts from each negative's logit the log of how often the sampler draws it (Yi et
al., RecSys 2019); it is left off the positive, whose inclusion is certain (Khrylchenko et al.,
"Correcting the LogQ correction", RecSys 2025).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_softmax(
    users: Tensor,
    items: Tensor,
    codes: Tensor,
    *,
    popularity: Tensor | None,
    catalogue: int,
    temperature: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean loss of a batch of ``B`` examples with ``U`` uniform negatives.

    Args:
        users: unit vectors ``[B, D]``.
        items: unit vectors ``[B + U, D]``: first each example's own item (the others' in-batch
            negatives), then items drawn uniformly from the catalogue.
        codes: int64 ``[B + U]``, which items those are.
        popularity: float32 ``[B + U]``, probability that an example's item is this one; None: no
            correction.
        catalogue: number of items that the uniform negatives are drawn from.
        temperature: scalar.
        weights: float32 ``[B]``, weight of each example.

    A negative that is the example's own item (an accidental hit) takes no part.

    """
    batch = len(users)
    uniform = len(codes) - batch
    scores = users @ items.T / temperature  # [B, B + U]
    positive = scores.diagonal().unsqueeze(1)

    # Negatives, less the log of how often each is expected among the batch's items.
    negatives = scores
    if popularity is not None:
        expected = batch * popularity + uniform / catalogue
        negatives = scores - torch.log(expected).unsqueeze(0)
    own = codes[:batch].unsqueeze(1) == codes.unsqueeze(0)
    negatives = negatives.masked_fill(own, float("-inf"))

    # Cross-entropy with the positive in the first of 1 + B + U columns.
    logits = torch.cat([positive, negatives], dim=1)
    target = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    losses = F.cross_entropy(logits.float(), target, reduction="none")
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
