"""The fastest codec that this machine has, for `gapconn.protocol.fec`."""
