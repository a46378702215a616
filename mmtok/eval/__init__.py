"""Benchmarks that score a model. Every file in `methods/` is one."""
