"""Job scripts for Slurm and Kubernetes."""
