"""Check Azure ML files offline: what Azure ML refuses, and what it accepts but cannot work."""
