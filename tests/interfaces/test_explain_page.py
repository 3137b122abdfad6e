"""The words and figures on the page of `molrmog explain`; the page itself is seen in the tests of the command."""

from molrmog.interfaces.explain.page import with_error


def test_figures_and_errors_have_the_same_digits():
    assert with_error(-0.5, 0.25) == "−0.500 ± 0.250"
