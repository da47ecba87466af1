"""Words for the generator: the request, ideas of a chat model, templates, the book, its cost and its diversity."""
