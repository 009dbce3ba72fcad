"""Bulk sampling jobs."""
