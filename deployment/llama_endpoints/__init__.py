"""The command `llama-endpoints`: from a checkpoint to a packaged model and its endpoints."""
