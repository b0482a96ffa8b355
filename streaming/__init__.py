"""From a change in the log to points in the index: the dataflow, what it decides and what keeps it complete."""
