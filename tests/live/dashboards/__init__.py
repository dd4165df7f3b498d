"""What people look at: dashboards and trackers, the real ones."""
