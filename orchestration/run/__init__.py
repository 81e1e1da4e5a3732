"""Making cells done: campaign, search, schedule, worker, submission, progress."""
