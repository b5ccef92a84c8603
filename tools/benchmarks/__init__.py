"""The benchmarks of `tools/bench`: what fieldbus costs, beside what others cost for the same."""
