"""What generates: a model in this process, or an endpoint."""
