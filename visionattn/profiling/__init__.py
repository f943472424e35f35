"""The cost of networks and blocks: parameters, multiplications, bytes moved and saved."""
