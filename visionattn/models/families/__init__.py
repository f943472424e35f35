"""The papers' networks: tables over the hosts."""
