"""The encoder service: images and captions in, cached latents and embeddings out."""
