"""Data: every source becomes one `Dataset` of scaled rows.

loading      any source by its name or path
sources      the kinds of files, and how they are recognised
published    the data sets with a name
folders      pictures, tables and known layouts in folders
files        arrays of numpy, IDX, CIFAR-10 batches
tables       CSV, parquet, Feather
columns      which columns are coordinates, labels, left out, refused
labels       labels as classes
images       pictures as arrays
arrays       whatever a caller passes, as rows
bounds       how much a file may ask for
account      what was read, and what was not
dataset      rows, their scaling, and how samples become images again
"""

from molrmog.data.dataset import Dataset, Layout
from molrmog.data.loading import load, load_parts, load_test, parted, reading_of

__all__ = ["Dataset", "Layout", "load", "load_parts", "load_test", "parted", "reading_of"]
