"""What `molrmog reproduce` runs: the paper's claims, one experiment each."""
