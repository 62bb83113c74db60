"""What an end of a link remembers over a restart, in SQLite files of its own."""
