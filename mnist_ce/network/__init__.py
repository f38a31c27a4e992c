"""The network, its objectives and its matrix products."""
