"""What a job leaves: its files, metrics and report."""
