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
    scores = users @ items.T / temperature
    right = scores.diagonal().unsqueeze(1)
    if popularity is None:
        wrong = scores
    else:
        wrong = scores - torch.log(batch * popularity + (len(codes) - batch) / catalogue).unsqueeze(
            0
        )
    wrong = wrong.masked_fill(codes[:batch].unsqueeze(1) == codes.unsqueeze(0), float("-inf"))
    logits = torch.cat([right, wrong], dim=1)
    target = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    losses = F.cross_entropy(logits.float(), target, reduction="none")
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
