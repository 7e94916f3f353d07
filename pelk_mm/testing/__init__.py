"""Case lists, tolerances and timing for tests and benchmarks, shipped so that downstream users can test too."""
