"""mmtok.training."""
