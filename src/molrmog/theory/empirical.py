"""The denoiser of the rows themselves: what score matching without a model would learn.

Of all functions, the one with the smallest denoising loss on rows x_1..x_n is the posterior mean under their empirical
law, a mixture of n points that noise turns into a kernel density estimate of bandwidth gamma / s:

    D(x_t) = sum_i w_i x_i,      w = softmax_i ( -|x_t - s x_i|^2 / (2 gamma^2) )

It has nothing to learn and nothing but the rows to say: at low noise it returns the nearest of them.

References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, appendix B.3.
"""

from __future__ import annotations

from torch import Tensor, nn

from molrmog.laws.base import Noise, by_rows, rows_per_chunk


class EmpiricalDenoiser(nn.Module):
    """Posterior mean of x_0 under the empirical law of given rows.

    Attributes:
        rows: the rows x_i, with shape (n, D).

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> EmpiricalDenoiser(rows).denoise(torch.tensor([[0.9, 0.9], [0.5, 0.5]]), s=1.0, gamma=0.1)
        tensor([[1.0000, 1.0000],
                [0.5000, 0.5000]])
    """

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        """Keep the rows, with shape (n, D).

        Raises:
            ValueError: there are none.
        """
        super().__init__()
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"rows have shape {tuple(rows.shape)}: pass at least one, with shape (n, D)")
        self.dim = rows.shape[1]
        self.register_buffer("rows", rows.contiguous())

    def denoise(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """E[x_0 | x_t] with shape (B, D) from x_t with shape (B, D); gamma must be positive.

        Raises:
            ValueError: shapes do not fit, or gamma is 0, where the rows have no density.
        """
        rows, energy = self.rows, self.rows.square().sum(1)

        def mean(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            s, gamma = s[:, None].to(x.dtype), gamma[:, None].to(x.dtype)
            # |x_t - s x_i|^2 without |x_t|^2, which all i share
            logits = (s * x @ rows.T.to(x.dtype) - 0.5 * s.square() * energy.to(x.dtype)) / gamma.square()
            return (logits.softmax(1) @ rows.to(x.dtype),)

        size = rows_per_chunk(x.device, self.dim + 3 * len(rows))
        nothing = energy.new_zeros(1)  # the rows have no noise of their own
        return by_rows(mean, x, s, gamma, dim=self.dim, noise=nothing, parameters=(), size=size)[0]
