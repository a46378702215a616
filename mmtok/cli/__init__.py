"""mmtok.cli."""
