"""What `molrmog reproduce` runs: the paper's claims, one experiment each.

| name   | asks                                                                                | module   |
| ------ | ----------------------------------------------------------------------------------- | -------- |
| images | how MoG, Gaussian and U-Net compare in the same latents of expert autoencoders      | `images` |
| floor  | how near a trained MoG network comes to the best loss there is, where it is known   | `floor`  |

An experiment is a function of a folder and a budget that computes what is missing there and returns its page.
"""
