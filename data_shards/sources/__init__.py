"""Raw data on disk as samples."""
