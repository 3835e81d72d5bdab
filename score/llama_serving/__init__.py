"""Serves Code Llama and Llama-2: API contract, prompts, engines, server and hosts."""
