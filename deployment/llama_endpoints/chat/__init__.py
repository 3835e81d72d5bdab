"""The terminal's conversation with a model: what is typed, asked and shown."""
