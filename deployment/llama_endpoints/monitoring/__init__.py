"""`llama-endpoints top`: what a server's `/metrics` say, shown again and again."""
