"""Who may use our own server, how much of it, and what was used: keys, quotas, usage and the audit."""
