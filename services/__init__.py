"""The two services, and what both use (`common`). Deployed from a checkout or an image, never from the wheel."""
