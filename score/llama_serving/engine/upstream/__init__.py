"""An engine whose tokens come from another OpenAI-compatible server that accepts token ids (vLLM, or one of ours)."""
