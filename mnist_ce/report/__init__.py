"""Plots, the HTML report and ONNX export."""
