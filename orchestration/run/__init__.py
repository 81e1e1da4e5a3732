"""Running cells until they are done: campaign, search, schedule, worker, submission, progress."""
