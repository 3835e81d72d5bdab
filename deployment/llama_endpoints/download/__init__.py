"""Model files fetched from a hub, a registry or a workspace."""
