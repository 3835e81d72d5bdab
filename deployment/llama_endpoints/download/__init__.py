"""Download model files from a hub, a registry or a workspace."""
