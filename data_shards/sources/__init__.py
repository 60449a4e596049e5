"""Raw data on disk as samples: one file for each published data set."""
