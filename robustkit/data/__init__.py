"""Labelled images by name: load_data("mnist:n=500"). See load_data for everything that is understood."""

from robustkit.data.arrays import as_data
from robustkit.data.checks import check_images
from robustkit.data.dataset import Data
from robustkit.data.load import data_names, load_data
from robustkit.data.torchvision_sets import locate

__all__ = ["Data", "as_data", "check_images", "data_names", "load_data", "locate"]
