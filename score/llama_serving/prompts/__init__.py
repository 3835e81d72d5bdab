"""Request and model row -> token ids, and ids -> text. Pure: no torch, no transformers."""
