"""What tests of this package, and of packages built on it, use: fixtures of official codes, contracts of mechanisms."""
