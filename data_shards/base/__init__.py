"""What all packages are built on: errors, atomic files, stores, text, names, metrics endpoint."""
