"""The machine: errors, files, device, processes."""
