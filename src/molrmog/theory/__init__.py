"""The paper's theorems as measurements on laws that are known.

| module      | measures                                                              | paper                 |
| ----------- | --------------------------------------------------------------------- | --------------------- |
| estimation  | error of a learned score, and the bound on the generalisation gap     | estimation error      |
| landscape   | Hessian and Gauss-Newton matrix of the score-matching loss            | local strong convexity |
| convergence | contraction of gradient descent and its peers                         | linear convergence    |
| overlap     | how much modes overlap, and what that does to the smallest eigenvalue | bounded overlap       |
"""
