"""mmtok.models."""
