"""Pages of the docs' site that are made of the programs themselves, and what the site does with links."""
