"""`molrmog explain`: how much of a trained network a law explains."""

from molrmog.interfaces.explain.run import explain_run

__all__ = ["explain_run"]
