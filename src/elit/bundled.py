"""The model that comes with the package."""

from pathlib import Path

from elit.elastic.model import ElasticModel
from elit.weights import load_model

FOLDER = Path(__file__).parent / "bundled"


def load_bundled(device: str = "cpu") -> ElasticModel:
    """The bundled emoji model: 99 classes of 32 x 32 RGB pictures, sixteen budgets."""
    return load_model(FOLDER, device)
