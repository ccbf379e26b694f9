"""What a job trains on, read from what the encoder has cached."""
