"""Recording results and reading them back: the journal, MLflow, the files of trials."""
