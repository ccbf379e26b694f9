"""From the bytes of image files to what training will see of them."""
