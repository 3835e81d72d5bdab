"""Collection of prompts and answers, which an operator can switch on: what is recorded, redacted, and sent where."""
