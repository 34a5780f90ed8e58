"""How arrays of other frameworks are given and taken."""
