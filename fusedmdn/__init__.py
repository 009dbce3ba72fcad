"""Fused LSTM + mixture density networks for PyTorch: train them, and sample strokes by the million."""

# A checkout on sys.path hides the installed package; its own sub-packages and extension are still found there.
__path__ = __import__("pkgutil").extend_path(__path__, __name__)

from . import ops
from .loaders import load
from .mixture import StrokeMixture
from .module import FusedLSTMMDN
from .ops import GenerateState
from .stroke_batch import StrokeBatch
from .strokes import Scale, Strokes

__version__ = "0.1.0"

__all__ = ["FusedLSTMMDN", "GenerateState", "Scale", "StrokeBatch", "StrokeMixture", "Strokes", "load", "ops"]
