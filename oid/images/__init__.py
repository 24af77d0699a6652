"""Images: finding, reading, measuring and resizing them."""
