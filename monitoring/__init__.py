"""What operators see: rules and dashboards, written to `configs/monitoring`."""
