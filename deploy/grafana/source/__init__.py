"""The dashboards: one module of data for each, and what makes JSON of them."""
