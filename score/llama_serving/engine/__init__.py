"""The engines: token ids in, token ids out. No engine knows text or tokenizers."""
