"""What networks and blocks cost: parameters, multiplications, bytes moved and saved."""
