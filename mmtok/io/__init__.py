"""mmtok.io."""
