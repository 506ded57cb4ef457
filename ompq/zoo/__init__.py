"""Networks by name, with their weights and their preprocessing."""

from ompq.zoo._load import Network, load_network

__all__ = ["Network", "load_network"]
