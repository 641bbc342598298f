"""What runs cost, how they are packed, and whether a site can run them."""
