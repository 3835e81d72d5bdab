"""Local batch tools: a dry run, and an emulator of Azure ML's batch deployments."""
