"""Small parts the example programs share."""
