"""Token ids in, token ids out. No engine knows what a tokenizer is."""
