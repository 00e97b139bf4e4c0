"""Who may ask how much, and whose turn it is: keys, quotas, fair order, expected waits."""
