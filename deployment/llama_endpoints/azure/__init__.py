"""Azure ML as it is: its client, credentials, limits, and schemas."""
