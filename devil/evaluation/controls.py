"""Captions that need no translator: what a score must beat before it means anything."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from devil.errors import DataError


def most_frequent_caption(references: Sequence[Sequence[str]]) -> str:
    """The caption given most often in a training set; the first of equals in sorted order.

    Raises:
        DataError: there are no captions.
    """
    counts = Counter(text for texts in references for text in texts)
    if not counts:
        raise DataError("the training set has no captions.")
    best = max(counts.values())
    return min(text for text, count in counts.items() if count == best)


def nearest_captions(
    features: Float[Tensor, "row channels"],
    train_features: Float[Tensor, "other channels"],
    train_references: Sequence[Sequence[str]],
) -> list[str]:
    """For each row the first caption of the training photo with the most similar features.

    Similarity is the cosine after centring by the training set's mean.
    """
    centre = train_features.mean(dim=0)
    queries = F.normalize(features - centre, dim=1)
    bank = F.normalize(train_features - centre, dim=1)
    nearest = torch.cat([(rows @ bank.T).argmax(dim=1) for rows in queries.split(1024)])
    return [train_references[int(index)][0] for index in nearest]
