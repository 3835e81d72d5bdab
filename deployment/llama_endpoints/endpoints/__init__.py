"""Endpoints in Azure ML: what is there against what the files say, the steps between, and traffic that moves in steps."""
