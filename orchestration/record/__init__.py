"""What is recorded, where, and how it is read back: journal, MLflow, files of trials."""
