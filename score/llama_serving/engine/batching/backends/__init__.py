"""The backends, which run the model: flat rows in, logits out. One backend a file."""
