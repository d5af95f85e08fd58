"""The server's processes: a supervisor that forks workers, and the socket they share."""
