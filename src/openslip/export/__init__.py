"""Write a model in the form of another library, and check that the library computes the same."""
