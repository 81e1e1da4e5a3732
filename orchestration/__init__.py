"""Grids of trials on Ray, searched by Optuna, tracked in MLflow, reported as tables and figures."""
