"""Models by name: load_model("zoo:digits-pgd"). See load_model for everything that is understood."""

from robustkit.models.architecture import build, output_shape
from robustkit.models.architectures import architecture_names, architecture_text
from robustkit.models.load import load_model, zoo_names
from robustkit.models.weights import save_model, state_digest

__all__ = ["architecture_names", "architecture_text", "build", "load_model", "output_shape", "save_model", "state_digest", "zoo_names"]
