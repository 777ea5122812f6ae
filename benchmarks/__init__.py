"""Benchmarks: each module measures one claim, beside the simple methods it is read against."""
