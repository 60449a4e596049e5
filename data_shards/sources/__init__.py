"""Raw data on disk as samples."""

from data_shards.sources.source import JSON, Kind, Source, SplitPlan

__all__ = ["JSON", "Kind", "Source", "SplitPlan"]
