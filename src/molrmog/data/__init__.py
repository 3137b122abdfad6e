"""Data: every source becomes one `Dataset` of scaled rows.

loading      any source by its name or path
published    the data sets with a name
files        formats of files and folders
images       pictures as arrays
dataset      rows, their scaling, and how samples become images again
"""

from molrmog.data.dataset import Dataset, Layout
from molrmog.data.loading import load, load_parts

__all__ = ["Dataset", "Layout", "load", "load_parts"]
