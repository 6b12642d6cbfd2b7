"""The reference "emoji-styles": features of all 1,035 test pictures of emoji in seven styles, which come with the package.

They are kept in float16, and what is kept defines the reference: its moments are those of the rounded features. That moves
a Fréchet distance by less than a thousandth, and the rows serve the measures that compare single images too.
"""

import numpy as np

from elit.data.emoji_styles_test import FEATURES_FILE, NAME, SIDE, read_split
from elit.errors import UserError
from elit.evaluation.arrays import Array
from elit.evaluation.extractors import Extractor
from elit.evaluation.moments import MomentSums
from elit.evaluation.statistics import OtherFeaturesError, Provenance, Statistics
from elit.weights import read_tensors


def load_styles_reference(extractor: Extractor) -> tuple[Statistics, Array]:
    """The statistics of the test split in an extractor's features, and the features themselves, (N, D) float32.

    Raises UserError for an extractor whose features are not kept, or whose weights are not those they were made with.
    """
    split, name = read_split(), extractor.name
    if split.networks.get(name) != extractor.fingerprint:
        other = name in split.networks
        raise OtherFeaturesError(
            f"{NAME} holds features of {' and '.join(split.networks)}, not of {'these weights of ' * other}{name};"
            " give the folder of the test pictures, as elit prepare emoji-styles makes it"
        )
    kept = read_tensors(FEATURES_FILE).get(name)
    if kept is None or kept.shape != (len(split.keys), extractor.width):
        raise UserError(f"{FEATURES_FILE} is not that of {len(split.keys)} pictures; install the package anew")
    sums, rows = MomentSums(extractor.width), kept.float()
    sums.add(rows)
    count, size = len(rows), (SIDE, SIDE)
    told_of = Provenance(NAME, name, count, size, extractor.fingerprint, extractor.resize)
    return Statistics(sums.moments(), told_of), np.asarray(rows)
