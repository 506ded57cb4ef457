"""What the stages of the OMPQ toolkit share: networks, data, graphs, costs, quantizers."""

__version__ = "0.1.0"
