"""What hypothesis draws for fastbn, what is legal of it, and what must hold afterwards."""
