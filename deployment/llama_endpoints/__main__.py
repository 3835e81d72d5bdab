"""`python -m llama_endpoints`: the command, where it is not installed."""

from llama_endpoints.cli.main import main

if __name__ == "__main__":
    main(prog_name="llama-endpoints")
