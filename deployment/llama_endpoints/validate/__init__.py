"""`llama-endpoints validate`: what Azure ML would refuse, or would take and then fail with."""
