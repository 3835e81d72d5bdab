"""vLLM as a child process: started, watched, restarted and ended by us, and asked through `engine/upstream`."""
