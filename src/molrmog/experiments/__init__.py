"""What `molrmog reproduce` runs: the paper's claims, one experiment each.

| name        | asks                                                                                   |
| ----------- | -------------------------------------------------------------------------------------- |
| images      | how MoG, Gaussian and U-Net compare in the same latents of expert autoencoders         |
| floor       | how near a trained MoG network comes to the best loss there is, where it is known      |
| estimation  | how the error of a learned score falls with n, and what D, K, n_k and d_k do to it     |
| curvature   | how convex the score-matching loss is around the truth, soft gates and all             |
| convergence | whether gradient descent contracts at the rate that the curvature predicts, and from where |
| overlap     | how much modes overlap, in known laws and in real latents, and what it costs           |
| subspaces   | how many rows it takes to recover the subspaces                                        |
| hybrid      | what a network gains that starts from a closed form instead of from nothing            |

An experiment is a function of a folder and a budget that computes what is missing there and returns its page.
"""
