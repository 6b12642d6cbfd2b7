"""The model that comes with the package, and the folder of what its figures are measured with."""

from pathlib import Path

from elit.elastic.model import ElasticModel
from elit.weights import load_model

FOLDER = Path(__file__).parent / "bundled"
REFERENCE = Path(__file__).parent / "reference"  # see docs/data.md; a model folder holds a model alone


def load_bundled(device: str = "cpu") -> ElasticModel:
    """The bundled model: emoji of 96 subgroups in seven styles, 64 x 64 RGB pixels, sixteen budgets."""
    return load_model(FOLDER, device)
