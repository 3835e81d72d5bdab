"""vLLM as a child process: started, watched, restarted and stopped here, and called through `engine/upstream`."""
