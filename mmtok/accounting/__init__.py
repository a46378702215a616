"""What a run costs: the ledger, counted and analytic FLOPs, time, memory, planning without weights."""
