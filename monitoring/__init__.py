"""Alert rules and dashboards, written to `configs/monitoring`."""
