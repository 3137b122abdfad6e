"""Drawings of `molrmog explain`: what the maps show, read back from the drawing."""

import numpy as np

from molrmog.data import Layout
from molrmog.interfaces.explain.drawings import Drawn, level_drawing, png


def drawn(D):
    rows = np.random.default_rng(0).normal(size=(4, 2, D))
    variance = np.full(D, 4.0)
    variance[-1] = 0.0  # the network says a constant there
    return Drawn(*rows, missed=np.full(D, 1.0), variance=variance)


def test_maps_are_the_root_and_the_share_left_and_grey_where_nothing_varies():
    drawing = level_drawing(drawn(9), Layout(name="rows", shape=(1, 3, 3), levels=256))
    maps = {axis.get_title(): axis.images[0].get_array() for axis in drawing.axes if axis.images}
    np.testing.assert_allclose(maps["difference, root mean square"], 1.0)
    left = maps["share of the variance left"]
    np.testing.assert_allclose(left.compressed(), np.full(8, 0.25))
    assert left.mask.ravel().tolist() == [False] * 8 + [True]
    assert png(drawing).startswith(b"\x89PNG")


def test_rows_that_are_no_pictures_are_lines_and_bars():
    drawing = level_drawing(drawn(5), Layout(name="rows", shape=(5,)))
    bars = {axis.get_title(): [bar.get_height() for bar in axis.patches] for axis in drawing.axes if axis.patches}
    np.testing.assert_allclose(bars["difference, root mean square"], np.ones(5))
    np.testing.assert_allclose(bars["share of the variance left"], [0.25] * 4 + [0.0])
