"""The machine: errors, files, devices, processes, text."""
