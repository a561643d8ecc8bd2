"""A chat in the terminal: what `client chat` is made of."""
