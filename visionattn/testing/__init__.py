"""Tools for tests of this package and of packages built on it: official fixtures, contracts of mechanisms."""
