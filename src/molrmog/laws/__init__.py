"""Laws: distributions that stay in their family when they are noised, so that every score is exact."""

from molrmog.laws.base import Law, Noise, Posterior, Samples, Subspace
from molrmog.laws.head_tail import HeadTail, with_tail
from molrmog.laws.molrmog import MoLRMoG

__all__ = ["HeadTail", "Law", "MoLRMoG", "Noise", "Posterior", "Samples", "Subspace", "with_tail"]
