"""Another server generates: an OpenAI-compatible one that takes token ids (vLLM, or one of ours)."""
