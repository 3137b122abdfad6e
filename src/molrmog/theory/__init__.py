"""The paper's theorems as measurements on laws that are known.

| module      | measures                                                                | paper                  |
| ----------- | ----------------------------------------------------------------------- | ---------------------- |
| estimation  | error of a learned score, and the bound on the generalisation gap       | estimation error       |
| landscape   | curvature of the score-matching loss around the truth, and its radius   | local strong convexity |
| border      | what soft gates change in that curvature, from rows on the borders      | local strong convexity |
| convergence | contraction of gradient descent, and from where it arrives              | linear convergence     |
| overlap     | how much modes overlap, and what that does to the smallest eigenvalue   | bounded overlap        |
| recovery    | how many rows it takes to find the subspaces                            | arXiv 2409.02426       |

| module      | is what they stand on                                                   |
| ----------- | ----------------------------------------------------------------------- |
| score_loss  | the loss as a function of one vector, with its derivatives and gauge    |
| distances   | how far a law is from another, whatever names their parameters go by    |
| descent     | ways down a loss: gradient descent, Gauss-Newton, Adam, EM              |
| known_bases | fits with the subspaces given                                           |
| empirical   | the denoiser of the rows themselves                                     |
"""
