"""What the program makes of files, names and answers that mean harm: one clear error, nothing run, nothing leaked."""
