"""mmtok.accounting."""
