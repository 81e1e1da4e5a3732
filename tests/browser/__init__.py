"""What a person sees: the report and MLflow's pages, opened in a real browser."""
