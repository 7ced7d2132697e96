"""What scripts/ run, and the real Cog server without Docker. Nothing else imports it."""
