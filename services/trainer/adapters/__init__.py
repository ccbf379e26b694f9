"""What a job adds to the base: attached, written as files, begun from files."""
