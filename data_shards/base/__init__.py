"""What all packages stand on: errors, atomic files, stores, text, names, metrics endpoint."""
