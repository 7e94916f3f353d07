"""What tests and benchmarks share: case lists, tolerances, timing. Shipped, so that downstream users can test too."""
