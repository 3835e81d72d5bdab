"""Guards: they check prompts before tokens are generated, and texts before these leave. Off by default."""
