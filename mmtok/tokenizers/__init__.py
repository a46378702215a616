"""Tokenizers: media in, compact codes out. Every file in `methods/` is one."""
