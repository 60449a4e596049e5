"""Processes of a run: rank, rendezvous, gathering, lease, stop requests."""
