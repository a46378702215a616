"""What a run costs: ledger, counted and analytic FLOPs, time, memory, plans without weights."""
