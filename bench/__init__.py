"""NovaStack's benchmarks: `make bench`. They print figures and ratios against the raw tool; nothing here is a test."""
