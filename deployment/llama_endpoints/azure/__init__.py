"""Azure ML's client, credentials, limits and schemas."""
