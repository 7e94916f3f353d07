"""What tests and benchmarks share: case lists, tolerances and timing. Shipped, so that downstream users can test too."""
