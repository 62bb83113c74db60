"""The commands of `gapconn`, all but the two ends of a link. What a command needs is imported inside it."""
