"""AlertRule rules and dashboards, written to `configs/monitoring`."""
