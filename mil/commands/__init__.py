"""What each subcommand does: thin wrappers over functions, which answer with an exit code."""
